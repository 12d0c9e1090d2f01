// Joins what block_attention found in the chunks of the context.
//
// inputs   partial [chunks, H, R, D] float, stats [chunks, H, R, 2] float: see block_attention
//          sinks [H], any float type: a score of each head that has no value; [1] if not SINKS
// outputs  y [1, H, R, D]
// template T: type of y, SINKS
// grid     (D / 4, H R, 1), threadgroup (D / 4, any, 1)
//
// Each thread makes four neighbouring elements of a row, chunk after chunk. A chunk that a row does
// not see adds an exact zero, so a row's bits do not depend on how many there are.

//! body
const int chunks = partial_shape[0], all = partial_shape[1] * partial_shape[2];
const int row = thread_position_in_grid.y, width = partial_shape[3] / 4;
const float sink = SINKS ? float(sinks[row / partial_shape[2]]) * M_LOG2E_F : -MAXFLOAT;

float top = sink;
for (int c = 0; c < chunks; c++) top = max(top, stats[(c * all + row) * 2]);

float total = SINKS ? fast::exp2(sink - top) : 0.0f;
float4 sum = float4(0);
const device float4* from = (const device float4*)partial + thread_position_in_grid.x;
for (int c = 0; c < chunks; c++) {
  const float share = fast::exp2(stats[(c * all + row) * 2] - top);
  total += share * stats[(c * all + row) * 2 + 1];
  sum += share * from[size_t(c * all + row) * width];
}
((device vec<T, 4>*)y)[size_t(row) * width + thread_position_in_grid.x] = vec<T, 4>(sum / total);
