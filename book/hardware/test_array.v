// Runs layers that a file describes through array and sequencer, and prints every cycle.
//
//     vvp test_array +data=layers.hex +words=123 [+dump=waves.vcd]
//
// The file holds a 64-bit word a line: for each layer N, M, B, the weights' zero-point, N M weights,
// B M inputs and N biases. A cycle is printed as `minq.mac.Cycle` has it:
//     index | load n start stop | compute vector n0 n1 m0 m1 | products | before | after | overflow
module test_array;
    parameter ROWS = 2, COLUMNS = 2, WEIGHT_BITS = 8, INPUT_BITS = 8, ACC_BITS = 32;
    parameter INPUT_SIGNED = 0, SATURATE = 0, DOUBLE_BUFFER = 0, ZERO_POINT = 0;
    parameter WORDS = 4096;
    localparam PRODUCT_BITS = WEIGHT_BITS + INPUT_BITS, SIZE_BITS = 12, VECTORS = 64;

    reg [63:0] data [0:WORDS-1];
    reg [8*256-1:0] file;
    integer words, at, index, r, c;
    integer n, m, b, n0, n1, m0, m1;

    reg clk = 0, start = 0;
    wire busy, load, swap, compute;
    wire [SIZE_BITS-1:0] step, load_n, load_m, work_n, work_m;
    sequencer #(ROWS, COLUMNS, DOUBLE_BUFFER, SIZE_BITS) order (
        clk, start, n[SIZE_BITS-1:0], m[SIZE_BITS-1:0], b[SIZE_BITS-1:0],
        busy, load, swap, compute, step, load_n, load_m, work_n, work_m
    );

    reg [ROWS-1:0] load_row, enable;
    reg [COLUMNS*WEIGHT_BITS-1:0] weights;
    reg [WEIGHT_BITS-1:0] zero_point;
    reg [ROWS*ACC_BITS-1:0] bias;
    reg [COLUMNS*INPUT_BITS-1:0] x;
    wire [ROWS*COLUMNS*PRODUCT_BITS-1:0] products;
    wire [ROWS*ACC_BITS-1:0] before, after;
    wire [ROWS-1:0] overflow;
    mac_array #(
        .ROWS(ROWS), .COLUMNS(COLUMNS), .WEIGHT_BITS(WEIGHT_BITS), .INPUT_BITS(INPUT_BITS),
        .ACC_BITS(ACC_BITS), .INPUT_SIGNED(INPUT_SIGNED), .SATURATE(SATURATE),
        .DOUBLE_BUFFER(DOUBLE_BUFFER), .ZERO_POINT(ZERO_POINT), .VECTORS(VECTORS), .VECTOR_BITS(6), .WATCH(1)
    ) array (
        .clk(clk), .load(load), .swap(swap), .load_row(load_row), .weights(weights), .zero_point(zero_point),
        .compute(compute), .enable(enable), .first(work_m == 0), .vector(step[5:0]), .bias(bias), .x(x),
        .products(products), .before(before), .after(after), .overflow(overflow)
    );

    // The memories around the array, read in the middle of a cycle. Where a tile has no column: 0.
    always @(negedge clk) begin
        load_row = 1'b1 << step;
        n0 = work_n;
        n1 = n0 + ROWS < n ? n0 + ROWS : n;
        m0 = work_m;
        m1 = m0 + COLUMNS < m ? m0 + COLUMNS : m;
        for (c = 0; c < COLUMNS; c = c + 1) begin
            weights[c*WEIGHT_BITS +: WEIGHT_BITS] =
                load && load_m + c < m ? data[at + 4 + (load_n + step) * m + load_m + c] : 0;
            x[c*INPUT_BITS +: INPUT_BITS] = compute && m0 + c < m ? data[at + 4 + n * m + step * m + m0 + c] : 0;
        end
        for (r = 0; r < ROWS; r = r + 1) begin
            enable[r] = n0 + r < n;
            bias[r*ACC_BITS +: ACC_BITS] = n0 + r < n ? data[at + 4 + n * m + b * m + n0 + r] : 0;
        end
    end

    always @(posedge clk) if (busy) begin
        $write("%0d |", index);
        if (load) $write(" %0d %0d %0d", load_n + step, load_m, load_m + COLUMNS < m ? load_m + COLUMNS : m);
        $write(" |");
        if (compute) begin
            $write(" %0d %0d %0d %0d %0d |", step, n0, n1, m0, m1);
            for (r = 0; r < n1 - n0; r = r + 1) for (c = 0; c < m1 - m0; c = c + 1)
                $write(" %0d", $signed(products[(r*COLUMNS+c)*PRODUCT_BITS +: PRODUCT_BITS]));
            $write(" |");
            for (r = 0; r < n1 - n0; r = r + 1) $write(" %0d", $signed(before[r*ACC_BITS +: ACC_BITS]));
            $write(" |");
            for (r = 0; r < n1 - n0; r = r + 1) $write(" %0d", $signed(after[r*ACC_BITS +: ACC_BITS]));
            $write(" |");
            for (r = 0; r < n1 - n0; r = r + 1) $write(" %b", overflow[r]);
        end
        $write("\n");
        index = index + 1;
    end

    always #5 clk = ~clk;

    initial begin
        if ($value$plusargs("dump=%s", file)) begin
            $dumpfile(file);
            $dumpvars(0, test_array);
        end
        if (!$value$plusargs("data=%s", file) || !$value$plusargs("words=%d", words)) begin
            $display("Name the file of layers: +data=layers.hex +words=123");
            $finish;
        end
        $readmemh(file, data, 0, words - 1);
        for (at = 0; at < words; at = at + 4 + n * m + b * m + n) begin
            {n, m, b} = {data[at][31:0], data[at+1][31:0], data[at+2][31:0]};
            zero_point = data[at+3][WEIGHT_BITS-1:0];
            index = 0;
            start = 1;
            @(posedge clk) #1 start = 0;
            while (busy) @(posedge clk) #1;
            $display("end");
        end
        $finish;
    end
endmodule
