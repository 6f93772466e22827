// The array of chapter 2: ROWS x COLUMNS elements, an accumulator at the end of each row.
//
// minq.mac.MacArray is its specification, cycle by cycle. In one cycle `load` writes the weights of
// one array row, and `compute` lets one input vector through: every element multiplies, and the rows
// named by `enable` add up. Buses hold element or row 0 in their lowest bits. Columns beyond a tile
// get weights and inputs of 0.
//
// ZERO_POINT: weights have a zero-point, w - z. What it adds is the same for all rows, z sum_m x_m, so
// it is computed once beside the array, like one more output channel, and subtracted in each row.
module mac_array #(
    parameter ROWS = 8, COLUMNS = 8, WEIGHT_BITS = 8, INPUT_BITS = 8, ACC_BITS = 32,
    parameter INPUT_SIGNED = 0, SATURATE = 0, DOUBLE_BUFFER = 0, ZERO_POINT = 0,
    parameter VECTORS = 1, VECTOR_BITS = 1, WATCH = 0,
    parameter PRODUCT_BITS = WEIGHT_BITS + INPUT_BITS
) (
    input  clk,
    // loading
    input  load,
    input  swap,
    input  [ROWS-1:0] load_row,  // one bit is set
    input  [COLUMNS*WEIGHT_BITS-1:0] weights,
    input  signed [WEIGHT_BITS-1:0] zero_point,
    // computing
    input  compute,
    input  [ROWS-1:0] enable,
    input  first,                // start from the bias
    input  [VECTOR_BITS-1:0] vector,
    input  [ROWS*ACC_BITS-1:0] bias,
    input  [COLUMNS*INPUT_BITS-1:0] x,
    // what a test bench looks at; the sums that are complete are the result
    output [ROWS*COLUMNS*PRODUCT_BITS-1:0] products,
    output [ROWS*ACC_BITS-1:0] before,
    output [ROWS*ACC_BITS-1:0] after,
    output [ROWS-1:0] overflow
);
    localparam OFFSET_BITS = ZERO_POINT ? PRODUCT_BITS + $clog2(COLUMNS) : 0;
    localparam OFFSET_WIDTH = ZERO_POINT ? OFFSET_BITS : 1;
    wire signed [OFFSET_WIDTH-1:0] offset;

    generate
        if (ZERO_POINT) begin : extra
            extra_channel #(COLUMNS, WEIGHT_BITS, INPUT_BITS, INPUT_SIGNED) channel (
                .zero_point(zero_point), .x(x), .offset(offset)
            );
        end else begin : symmetric
            wire unused = &zero_point;
            assign offset = 1'b0;
        end
    endgenerate

    genvar r, c;
    generate
        for (r = 0; r < ROWS; r = r + 1) begin : row
            for (c = 0; c < COLUMNS; c = c + 1) begin : column
                element #(WEIGHT_BITS, INPUT_BITS, INPUT_SIGNED, DOUBLE_BUFFER) one (
                    .clk(clk), .load(load && load_row[r]), .swap(swap),
                    .weight(weights[c*WEIGHT_BITS +: WEIGHT_BITS]), .x(x[c*INPUT_BITS +: INPUT_BITS]),
                    .product(products[(r*COLUMNS+c)*PRODUCT_BITS +: PRODUCT_BITS])
                );
            end
            accumulator #(
                .COLUMNS(COLUMNS), .PRODUCT_BITS(PRODUCT_BITS), .ACC_BITS(ACC_BITS), .VECTORS(VECTORS),
                .SATURATE(SATURATE), .WATCH(WATCH), .OFFSET_BITS(OFFSET_BITS), .VECTOR_BITS(VECTOR_BITS)
            ) sum (
                .clk(clk), .enable(compute && enable[r]), .first(first), .vector(vector),
                .bias(bias[r*ACC_BITS +: ACC_BITS]),
                .products(products[r*COLUMNS*PRODUCT_BITS +: COLUMNS*PRODUCT_BITS]), .offset(offset),
                .before(before[r*ACC_BITS +: ACC_BITS]), .after(after[r*ACC_BITS +: ACC_BITS]),
                .overflow(overflow[r])
            );
        end
    endgenerate
endmodule

// What a weight zero-point costs: z sum_m x_m, eq. (13)'s second term.
module extra_channel #(
    parameter COLUMNS = 8, WEIGHT_BITS = 8, INPUT_BITS = 8, INPUT_SIGNED = 0,
    parameter SUM_BITS = INPUT_BITS + $clog2(COLUMNS)
) (
    input  signed [WEIGHT_BITS-1:0] zero_point,
    input  [COLUMNS*INPUT_BITS-1:0] x,
    output signed [WEIGHT_BITS+SUM_BITS-1:0] offset
);
    reg [SUM_BITS-1:0] total;
    reg [INPUT_BITS-1:0] one;
    integer c;

    always @* begin
        total = 0;
        one = 0;
        for (c = 0; c < COLUMNS; c = c + 1) begin
            one = x[c*INPUT_BITS +: INPUT_BITS];
            total = total + (INPUT_SIGNED ? {{(SUM_BITS-INPUT_BITS+1){one[INPUT_BITS-1]}}, one} : one);
        end
    end

    multiply #(WEIGHT_BITS, SUM_BITS, INPUT_SIGNED) times (zero_point, total, offset);
endmodule
