// In what order the array sees a layer of N outputs, M inputs and B vectors: `minq.mac.MacArray.trace`.
//
// Tiles come row of tiles by row of tiles. A phase loads a tile (a row of weights a cycle), or lets
// all B vectors through one, or with DOUBLE_BUFFER both: the next tile loads while one computes, and
// the phase lasts as long as the slower of the two.
module sequencer #(
    parameter ROWS = 8, COLUMNS = 8, DOUBLE_BUFFER = 0, SIZE_BITS = 12
) (
    input  clk,
    input  start,
    input  [SIZE_BITS-1:0] n,
    input  [SIZE_BITS-1:0] m,
    input  [SIZE_BITS-1:0] b,
    output reg busy,
    output load,
    output swap,
    output compute,
    output reg [SIZE_BITS-1:0] step,    // loading: the array row; computing: the vector
    output reg [SIZE_BITS-1:0] load_n,  // first output and input of the tile that loads
    output reg [SIZE_BITS-1:0] load_m,
    output reg [SIZE_BITS-1:0] work_n,  // and of the one that computes
    output reg [SIZE_BITS-1:0] work_m
);
    reg loading, working;

    wire [SIZE_BITS-1:0] left = n - load_n;
    wire [SIZE_BITS-1:0] rows = left < ROWS ? left : ROWS;
    assign load = busy && loading && step < rows;
    assign compute = busy && working && step < b;

    wire last = (!loading || step + 1 >= rows) && (!working || step + 1 >= b);
    assign swap = busy && last && loading;

    wire more_m = load_m + COLUMNS < m;  // of the tile that has loaded: is there one to its right?
    wire more = more_m || load_n + ROWS < n;

    always @(posedge clk) begin
        if (start) begin
            {busy, loading, working} <= 3'b110;
            {step, load_n, load_m, work_n, work_m} <= {(5*SIZE_BITS){1'b0}};
        end else if (busy && !last) begin
            step <= step + 1'b1;
        end else if (busy) begin
            step <= {SIZE_BITS{1'b0}};
            if (loading) {work_n, work_m} <= {load_n, load_m};
            working <= loading;
            if (DOUBLE_BUFFER ? loading : working) begin
                loading <= more;
                load_m <= more_m ? load_m + COLUMNS : {SIZE_BITS{1'b0}};
                if (!more_m) load_n <= load_n + ROWS;
                busy <= DOUBLE_BUFFER ? 1'b1 : more;
            end else begin
                loading <= 1'b0;
                busy <= !DOUBLE_BUFFER;
            end
        end
    end
endmodule
