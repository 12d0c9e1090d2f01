// DFlash 2's convolution over the rows of a block, with the residual where there is one.
//
//     y[t, c] = residual[t, c] + sum over o of (base[side, o, c] + dynamic[t, side, o, c / group])
//               * rows[t - o, c]          with zeros before row 0
//
// inputs   rows [1, L, H]; base [2, reach, H]; dynamic [L, 2 reach groups], as the projection
//          returns it; residual [1, L, H], read only if WithResidual
// outputs  y [1, L, H]
// template T: type of y, Side: 0 before the sublayer and 1 behind it, WithResidual
// grid     (H, L, 1), threadgroup (32, threads / 32, 1)
//
// 32 channels of two bytes are a line. The rows of a threadgroup are neighbours: with as many as the
// block has, each line is read from memory once. Sums are float, rounded once.

//! body
const int size = rows_shape[2], reach = base_shape[1];
const int groups = dynamic_shape[1] / (2 * reach);
const int c = thread_position_in_grid.x, t = thread_position_in_grid.y;
const int group = c / (size / groups);

float sum = WithResidual ? float(residual[t * size + c]) : 0.0f;
for (int back = 0; back <= min(t, reach - 1); back++) {
  const int tap = Side * reach + back;
  const float learnt = float(base[tap * size + c]);
  const float made = float(dynamic[(t * 2 * reach + tap) * groups + group]);
  sum = fma(learnt + made, float(rows[(t - back) * size + c]), sum);
}
y[t * size + c] = T(sum);
