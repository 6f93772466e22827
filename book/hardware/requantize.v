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

    wire signed [63:0] product = acc * $signed({33'b0, multiplier});
    wire signed [63:0] half = (64'sd1 << shift) >>> 1;                   // 0 where nothing is shifted
    wire signed [63:0] rounded = (product + half) >>> shift;             // a shift rounds down
    wire tie = |half && (product & ((half << 1) - 64'sd1)) == half;      // exactly between two
    wire odd = !HALF_UP && rounded[0] && tie;                            // and the upper one is odd
    wire signed [63:0] moved = rounded - $signed({63'b0, odd}) + zero_point;
    wire signed [63:0] clamped = moved < LOW ? LOW : moved > HIGH ? HIGH : moved;
    assign y = clamped[BITS:0];
endmodule
