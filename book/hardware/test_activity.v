// `test_stream` for the ports of mac_array with one element.
module test_activity;
    parameter BITS = 8;
    wire clk, first;
    wire [BITS-1:0] weight, x;
    test_stream #(BITS) stream (clk, weight, x, first);
    mac_array dut (
        .clk(clk), .load(1'b1), .swap(1'b0), .load_row(1'b1), .weights(weight), .zero_point({BITS{1'b0}}),
        .compute(1'b1), .enable(1'b1), .first(first), .vector(1'b0), .bias(32'd0), .x(x),
        .products(), .before(), .after(), .overflow()
    );
    initial $dumpvars(0, dut);
endmodule
