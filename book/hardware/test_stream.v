// A stream of multiply-adds through the netlist of one element, every net dumped.
//
//     vvp test_activity +data=numbers.hex +words=123 +dump=dump.vcd
//
// The file holds three 64-bit words for each: weight, input, and 1 where a sum begins. The next weight
// enters while one is multiplied. `test_activity` has the ports of mac_array with one element, and
// `test_activity_float` those of float_mac.
module test_stream #(
    parameter BITS = 8, WORDS = 65536
) (
    output reg clk,
    output reg [BITS-1:0] weight,
    output reg [BITS-1:0] x,
    output reg first
);
    reg [63:0] data [0:WORDS-1];
    reg [8*256-1:0] file;
    integer words, at;

    initial begin
        clk = 0;
        if ($value$plusargs("dump=%s", file)) $dumpfile(file);
        if (!$value$plusargs("data=%s", file) || !$value$plusargs("words=%d", words)) begin
            $display("Name the file of numbers: +data=numbers.hex +words=123");
            $finish;
        end
        $readmemh(file, data, 0, words - 1);
        weight = data[0][BITS-1:0];
        x = 0;
        first = 1;
        #5 clk = 1;
        for (at = 0; at < words; at = at + 3) begin
            #5 clk = 0;
            x = data[at+1][BITS-1:0];
            first = data[at+2][0];
            if (at + 3 < words) weight = data[at+3][BITS-1:0];
            #5 clk = 1;
        end
        #5 $finish;
    end
endmodule
