// A processing element: it holds one weight and multiplies it by what comes in, C = W x of eq. (1).

// A signed weight times an input, without a sign unless INPUT_SIGNED. No product overflows these bits.
module multiply #(
    parameter WEIGHT_BITS = 8, INPUT_BITS = 8, INPUT_SIGNED = 0
) (
    input  signed [WEIGHT_BITS-1:0] weight,
    input  [INPUT_BITS-1:0] x,
    output signed [WEIGHT_BITS+INPUT_BITS-1:0] product
);
    wire top = INPUT_SIGNED ? x[INPUT_BITS-1] : 1'b0;
    wire signed [INPUT_BITS:0] wide = {top, x};
    assign product = weight * wide;
endmodule

// With DOUBLE_BUFFER the next weight waits in a second register until `swap`.
module element #(
    parameter WEIGHT_BITS = 8, INPUT_BITS = 8, INPUT_SIGNED = 0, DOUBLE_BUFFER = 0
) (
    input  clk,
    input  load,
    input  swap,
    input  signed [WEIGHT_BITS-1:0] weight,
    input  [INPUT_BITS-1:0] x,
    output signed [WEIGHT_BITS+INPUT_BITS-1:0] product
);
    reg signed [WEIGHT_BITS-1:0] held;

    generate
        if (DOUBLE_BUFFER) begin : waiting
            reg signed [WEIGHT_BITS-1:0] next;
            always @(posedge clk) begin
                if (load) next <= weight;
                if (swap) held <= load ? weight : next;
            end
        end else begin : direct
            wire unused = swap;
            always @(posedge clk) if (load) held <= weight;
        end
    endgenerate

    multiply #(WEIGHT_BITS, INPUT_BITS, INPUT_SIGNED) times (held, x, product);
endmodule
