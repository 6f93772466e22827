// `test_stream` for the ports of float_mac.
module test_activity_float;
    parameter BITS = 32;
    wire clk, first;
    wire [BITS-1:0] weight, x;
    test_stream #(BITS) stream (clk, weight, x, first);
    float_mac dut (
        .clk(clk), .load(1'b1), .weight(weight), .compute(1'b1), .first(first), .bias(32'd0), .x(x), .after()
    );
    initial $dumpvars(0, dut);
endmodule
