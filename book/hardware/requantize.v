// An accumulator to the next layer's integer, without a float: minq.mac.requantize.
//
//     y = clamp(round(acc multiplier 2^-shift) + zero_point; low, high)
//
// Ties go to the even neighbour, or up with HALF_UP. The multiplier has 31 bits and the shift is at
// most 62, so the product fits 63 bits and no step loses one.
module requantize #(
    parameter BITS = 8, SIGNED = 0, NARROW_RANGE = 0, HALF_UP = 0
) (
    input  signed [31:0] acc,
    input  [30:0] multiplier,
    input  [5:0] shift,
    input  signed [BITS:0] zero_point,
    output signed [BITS:0] y
);
    localparam signed [63:0] BOTTOM = SIGNED ? -(64'sd1 << (BITS - 1)) : 64'sd0;
    localparam signed [63:0] LOW = BOTTOM + (NARROW_RANGE ? 64'sd1 : 64'sd0);
    localparam signed [63:0] HIGH = BOTTOM + (64'sd1 << BITS) - 64'sd1;

    wire signed [62:0] exact;
    wide_multiply times (acc, multiplier, exact);
    wire signed [63:0] product = exact;
    wire signed [63:0] half = (64'sd1 << shift) >>> 1;                   // 0 where nothing is shifted
    wire signed [63:0] rounded = (product + half) >>> shift;             // a shift rounds down
    wire tie = |half && (product & ((half << 1) - 64'sd1)) == half;      // exactly between two
    wire odd = !HALF_UP && rounded[0] && tie;                            // and the upper one is odd
    wire signed [63:0] moved = rounded - $signed({63'b0, odd}) + zero_point;
    wire signed [63:0] clamped = moved < LOW ? LOW : moved > HIGH ? HIGH : moved;
    assign y = clamped[BITS:0];
endmodule

// 32 bits with a sign times 31 without, of four multipliers of half the width, as by hand with two
// digits: (a1 2^16 + a0) (b1 2^16 + b0). Each is small enough to be searched for few gates.
module wide_multiply (
    input  signed [31:0] a,
    input  [30:0] b,
    output signed [62:0] product
);
    wire signed [31:0] a1_b0, a0_b1;
    wire signed [30:0] a1_b1;
    wire signed [32:0] a0_b0;                                            // never negative
    multiply #(16, 15) high (a[31:16], b[30:16], a1_b1);
    multiply #(16, 16) left (a[31:16], b[15:0], a1_b0);
    multiply #(16, 16) right ({1'b0, b[30:16]}, a[15:0], a0_b1);
    multiply #(17, 16) low ({1'b0, b[15:0]}, a[15:0], a0_b0);
    assign product = $signed({a1_b1, a0_b0[31:0]}) + ((a1_b0 + a0_b1) <<< 16);
endmodule
