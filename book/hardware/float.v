// Multiply-adds in floating point, to set beside the element of integers: acc <= acc + weight x.
//
// Factors have EXPONENT and FRACTION bits: float32 (8, 23), bfloat16 (8, 7), FP8 E4M3 (4, 3, without
// infinities: INFINITE = 0). The sum is always float32, as accelerators have it. The product of two
// bfloat16 or E4M3 numbers has few enough digits to be exact in float32 (but for bfloat16's below
// float32's smallest normal one); one of two float32 is rounded to float32 first: there are two
// roundings, not the one of a fused multiply-add. All rounding is to the nearest, ties to even.
//
// Subnormal numbers are computed as IEEE 754 says. With FLUSH those of the 8-bit exponents, which few
// accelerators pay for, are taken and returned as 0. Every NaN that comes out is 7fc00000.

// Shift out leading zeros, and count them: a binary search, the widest step first.
module normalize #(
    parameter WIDTH = 27, STEPS = $clog2(WIDTH)
) (
    input  [WIDTH-1:0] value,
    output reg [WIDTH-1:0] shifted,
    output reg [STEPS-1:0] zeros
);
    integer k;
    always @* begin
        shifted = value;
        for (k = STEPS - 1; k >= 0; k = k - 1) begin
            zeros[k] = shifted >> (WIDTH - (1 << k)) == 0;
            if (zeros[k]) shifted = shifted << (1 << k);
        end
    end
endmodule

// Shift right; the last bit becomes 1 if a 1 was lost, so that rounding knows of it.
module shift_sticky #(
    parameter SHIFT_BITS = 8
) (
    input  [26:0] value,
    input  [SHIFT_BITS-1:0] places,
    output [26:0] shifted
);
    wire [4:0] few = places > 27 ? 5'd27 : places[4:0];
    wire [53:0] wide = {value, 27'b0} >> few;
    assign shifted = {wide[53:28], |wide[27:0]};
endmodule

// Round to 24 binary digits and pack. `digits` has three more; its first is 0 only in subnormals.
module float_pack (
    input  sign,
    input  [8:0] exponent,
    input  [26:0] digits,
    output [31:0] y
);
    wire up = digits[2] && (digits[1] || digits[0] || digits[3]);
    wire [7:0] field = digits[26] ? exponent[7:0] : 8'd0;
    // A carry out of the fraction raises the exponent, up to infinity: all as it should be.
    wire [30:0] magnitude = {field, digits[25:3]} + {30'b0, up};
    assign y = {sign, exponent >= 255 ? {8'd255, 23'd0} : magnitude};
endmodule

module float_multiply #(
    parameter EXPONENT = 8, FRACTION = 23, INFINITE = 1, FLUSH = 0,
    parameter WIDTH = 1 + EXPONENT + FRACTION
) (
    input  [WIDTH-1:0] a,
    input  [WIDTH-1:0] b,
    output [31:0] y
);
    localparam DIGITS = 2 * FRACTION + 2, COUNT = $clog2(DIGITS);
    localparam BIAS = (1 << (EXPONENT - 1)) - 1;
    localparam WIDE = EXPONENT == 8;  // the product may leave float32's range
    localparam ZEROED = FLUSH && WIDE;

    wire [EXPONENT-1:0] ea = a[FRACTION +: EXPONENT], eb = b[FRACTION +: EXPONENT];
    wire [FRACTION-1:0] fa = a[FRACTION-1:0], fb = b[FRACTION-1:0];
    wire sign = a[WIDTH-1] ^ b[WIDTH-1];

    wire a_high = &ea, b_high = &eb;
    wire a_infinite = INFINITE && a_high && fa == 0, b_infinite = INFINITE && b_high && fb == 0;
    wire a_nan = a_high && (INFINITE ? fa != 0 : &fa), b_nan = b_high && (INFINITE ? fb != 0 : &fb);
    wire a_zero = ea == 0 && (ZEROED || fa == 0), b_zero = eb == 0 && (ZEROED || fb == 0);
    wire nan = a_nan || b_nan || a_infinite && b_zero || b_infinite && a_zero;

    wire [DIGITS-1:0] product = {|ea, fa} * {|eb, fb};
    wire [DIGITS-1:0] shifted;
    wire [COUNT-1:0] zeros;
    generate
        if (ZEROED) begin : normal  // 1.f times 1.f is below 4, so there is at most one zero
            assign zeros = !product[DIGITS-1];
            assign shifted = product << zeros;
        end else begin : any
            normalize #(DIGITS) first (product, shifted, zeros);
        end
    endgenerate

    // 27 digits: 24 of float32, two more, and whether anything follows.
    wire [26:0] exact;
    generate
        if (DIGITS > 27) begin : rest
            assign exact = {shifted[DIGITS-1 -: 26], |shifted[DIGITS-27:0]};
        end else begin : all
            assign exact = {shifted, {(27-DIGITS){1'b0}}};
        end
    endgenerate

    wire [EXPONENT-1:0] field_a = |ea ? ea : 1, field_b = |eb ? eb : 1;
    wire signed [10:0] exponent =
        $signed({1'b0, field_a}) + $signed({1'b0, field_b}) + (128 - 2 * BIAS) - $signed({1'b0, zeros});
    wire tiny = WIDE && exponent < 1;
    wire [10:0] below = 11'sd1 - exponent;
    wire [26:0] digits;
    generate
        if (WIDE && !FLUSH) begin : gradual
            wire [26:0] lower;
            shift_sticky #(11) shift (exact, below, lower);
            assign digits = tiny ? lower : exact;
        end else begin : sudden
            wire unused = &below;
            assign digits = exact;
        end
    endgenerate

    wire [31:0] rounded;
    float_pack pack (sign, tiny ? 9'd1 : exponent[8:0], digits, rounded);
    wire zero = a_zero || b_zero || ZEROED && tiny;
    assign y = nan ? 32'h7fc00000
        : a_infinite || b_infinite ? {sign, 8'd255, 23'd0}
        : zero ? {sign, 31'd0} : rounded;
endmodule

module float_add #(
    parameter FLUSH = 0
) (
    input  [31:0] a,
    input  [31:0] b,
    output [31:0] y
);
    wire swap = b[30:0] > a[30:0];
    wire [31:0] big = swap ? b : a, lesser = swap ? a : b;
    wire big_normal = |big[30:23], lesser_normal = |lesser[30:23];
    wire [7:0] big_exponent = big_normal ? big[30:23] : 8'd1;
    wire [7:0] lesser_exponent = lesser_normal ? lesser[30:23] : 8'd1;
    wire [26:0] big_digits = FLUSH && !big_normal ? 27'd0 : {big_normal, big[22:0], 3'b0};
    wire [26:0] lesser_digits = FLUSH && !lesser_normal ? 27'd0 : {lesser_normal, lesser[22:0], 3'b0};

    wire [7:0] apart = big_exponent - lesser_exponent;
    wire [26:0] aligned;
    shift_sticky #(8) align (lesser_digits, apart, aligned);
    wire same = big[31] == lesser[31];
    wire [27:0] sum = same ? big_digits + aligned : big_digits - aligned;

    // Up to 26 leading zeros after a subtraction, but no exponent below 1.
    wire [26:0] shifted;
    wire [4:0] zeros;
    normalize #(27) first (sum[26:0], shifted, zeros);
    wire few = zeros < big_exponent;
    wire [26:0] left = FLUSH || few ? shifted : sum[26:0] << (big_exponent - 8'd1);
    wire [8:0] exponent = sum[27] ? big_exponent + 9'd1 : few ? big_exponent - zeros : 9'd1;
    wire [26:0] digits = sum[27] ? {sum[27:2], |sum[1:0]} : left;

    wire none = sum == 0;
    wire sign = none && !same ? 1'b0 : big[31];  // x - x is +0
    wire [31:0] rounded;
    float_pack pack (sign, exponent, digits, rounded);

    wire high = &big[30:23];
    wire nan = high && (|big[22:0] || &lesser[30:23] && !same);  // NaNs are the largest
    wire zero = none || FLUSH && !few && !sum[27];
    assign y = nan ? 32'h7fc00000 : high ? {big[31], 8'd255, 23'd0} : zero ? {sign, 31'd0} : rounded;
endmodule

// With the ports of an array of one element: a weight that is held, a sum that starts at the bias.
module float_mac #(
    parameter EXPONENT = 8, FRACTION = 23, INFINITE = 1, FLUSH = 0,
    parameter WIDTH = 1 + EXPONENT + FRACTION
) (
    input  clk,
    input  load,
    input  [WIDTH-1:0] weight,
    input  compute,
    input  first,
    input  [31:0] bias,
    input  [WIDTH-1:0] x,
    output [31:0] after
);
    reg [WIDTH-1:0] held;
    reg [31:0] acc;
    wire [31:0] product;

    float_multiply #(EXPONENT, FRACTION, INFINITE, FLUSH) times (held, x, product);
    float_add #(FLUSH) plus (first ? bias : acc, product, after);

    always @(posedge clk) begin
        if (load) held <= weight;
        if (compute) acc <= after;
    end
endmodule
