// Multiply-adds of what a file holds.
//
//     vvp test_float +data=numbers.hex +words=123
//
// The file holds three 64-bit words for each: weight, input, and the bias to which the product is
// added. Printed are product and sum, as hexadecimal float32.
module test_float;
    parameter EXPONENT = 8, FRACTION = 23, INFINITE = 1, FLUSH = 0, WORDS = 524288;
    localparam WIDTH = 1 + EXPONENT + FRACTION;

    reg [63:0] data [0:WORDS-1];
    reg [8*256-1:0] file;
    integer words, at;
    reg clk = 0;
    reg [WIDTH-1:0] weight, x;
    reg [31:0] bias;
    wire [31:0] after;
    float_mac #(EXPONENT, FRACTION, INFINITE, FLUSH) dut (clk, 1'b1, weight, 1'b1, 1'b1, bias, x, after);

    initial begin
        if (!$value$plusargs("data=%s", file) || !$value$plusargs("words=%d", words)) begin
            $display("Name the file of numbers: +data=numbers.hex +words=123");
            $finish;
        end
        $readmemh(file, data, 0, words - 1);
        for (at = 0; at < words; at = at + 3) begin
            weight = data[at][WIDTH-1:0];
            x = data[at+1][WIDTH-1:0];
            bias = data[at+2][31:0];
            #1 clk = 1;
            #1 $display("%h %h", dut.product, after);
            clk = 0;
        end
        $finish;
    end
endmodule
