// The end of a row: A_n + sum_m C_nm of eq. (1), as an accumulator of ACC_BITS keeps it.
//
// Beyond its ends it wraps (drops the high bits) or, with SATURATE, stays at the end. One partial sum
// for each of VECTORS input vectors waits in it; `first` takes the bias in its place. OFFSET_BITS > 0
// subtracts what a weight zero-point adds to all rows alike, eq. (13)'s second term. WATCH makes
// `overflow` tell whether the sum did not fit; without it, it costs no gates.
module accumulator #(
    parameter COLUMNS = 8, PRODUCT_BITS = 16, ACC_BITS = 32, VECTORS = 1,
    parameter SATURATE = 0, WATCH = 0, OFFSET_BITS = 0, VECTOR_BITS = 1,
    parameter OFFSET_WIDTH = OFFSET_BITS ? OFFSET_BITS : 1
) (
    input  clk,
    input  enable,
    input  first,
    input  [VECTOR_BITS-1:0] vector,
    input  signed [ACC_BITS-1:0] bias,
    input  [COLUMNS*PRODUCT_BITS-1:0] products,
    input  signed [OFFSET_WIDTH-1:0] offset,
    output signed [ACC_BITS-1:0] before,
    output signed [ACC_BITS-1:0] after,
    output overflow
);
    // Bits that no sum of one cycle can overflow: of the widest summand, and of how many there are.
    localparam SUMMAND = ACC_BITS > PRODUCT_BITS ? ACC_BITS : PRODUCT_BITS;
    localparam WIDEST = SUMMAND > OFFSET_BITS ? SUMMAND : OFFSET_BITS;
    localparam SUM_BITS = WIDEST + $clog2(COLUMNS + 2);
    // All bits from the accumulator's sign upwards are equal in a sum that fits.
    localparam HIGH = SUM_BITS - ACC_BITS + 1;

    reg signed [ACC_BITS-1:0] sums [0:VECTORS-1];
    reg signed [SUM_BITS-1:0] total;
    integer c;

    assign before = first ? bias : VECTORS > 1 ? sums[vector] : sums[0];

    always @* begin
        total = before;
        for (c = 0; c < COLUMNS; c = c + 1)
            total = total + $signed(products[c*PRODUCT_BITS +: PRODUCT_BITS]);
        if (OFFSET_BITS) total = total - offset;
    end

    wire fits = total[SUM_BITS-1:ACC_BITS-1] == {HIGH{total[SUM_BITS-1]}};
    wire signed [ACC_BITS-1:0] last = {total[SUM_BITS-1], {(ACC_BITS-1){~total[SUM_BITS-1]}}};
    assign after = SATURATE && !fits ? last : total[ACC_BITS-1:0];
    assign overflow = WATCH ? !fits : 1'b0;

    always @(posedge clk) if (enable) sums[VECTORS > 1 ? vector : 0] <= after;
endmodule
