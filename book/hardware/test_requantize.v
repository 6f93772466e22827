// Requantizes what a file holds and prints the results.
//
//     vvp test_requantize +data=numbers.hex +words=1234
//
// The file holds four 64-bit words for each result: accumulator, multiplier, shift, zero-point.
module test_requantize;
    parameter BITS = 8, SIGNED = 0, NARROW_RANGE = 0, HALF_UP = 0, WORDS = 65536;

    reg [63:0] data [0:WORDS-1];
    reg [8*256-1:0] file;
    integer words, at;
    reg [31:0] acc;
    reg [30:0] multiplier;
    reg [5:0] shift;
    reg [BITS:0] zero_point;
    wire signed [BITS:0] y;
    requantize #(BITS, SIGNED, NARROW_RANGE, HALF_UP) dut (acc, multiplier, shift, zero_point, y);

    initial begin
        if (!$value$plusargs("data=%s", file) || !$value$plusargs("words=%d", words)) begin
            $display("Name the file of numbers: +data=numbers.hex +words=1234");
            $finish;
        end
        $readmemh(file, data, 0, words - 1);
        for (at = 0; at < words; at = at + 4) begin
            acc = data[at][31:0];
            multiplier = data[at+1][30:0];
            shift = data[at+2][5:0];
            zero_point = data[at+3][BITS:0];
            #1 $display("%0d", y);
        end
        $finish;
    end
endmodule
