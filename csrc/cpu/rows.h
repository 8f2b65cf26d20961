// SPDX-License-Identifier: Apache-2.0
// The vertical pass of the resampling kernels.
#pragma once

#include "../common.h"

namespace ggf {

// out[i] = sum_k weights[k] * rows[k][offset + i] for i < n. `rows` and `weights` hold at least four entries, valid to read.
template <typename T>
GGF_INLINE void add_rows(const T* const* rows, const Compute<T>* weights, int64_t count, int64_t offset, int64_t n,
                         Compute<T>* GGF_RESTRICT out) {
  using A = Compute<T>;
  const T *GGF_RESTRICT a = rows[0] + offset, *GGF_RESTRICT b = rows[1] + offset;
  const T *GGF_RESTRICT c = rows[2] + offset, *GGF_RESTRICT d = rows[3] + offset;
  const A wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
  switch (count) {
    case 0:
      for (int64_t i = 0; i < n; ++i) out[i] = 0;
      break;
    case 1:
      for (int64_t i = 0; i < n; ++i) out[i] = wa * load(a[i]);
      break;
    case 2:
      for (int64_t i = 0; i < n; ++i) out[i] = wa * load(a[i]) + wb * load(b[i]);
      break;
    case 3:
      for (int64_t i = 0; i < n; ++i) out[i] = wa * load(a[i]) + wb * load(b[i]) + wc * load(c[i]);
      break;
    default:
      for (int64_t i = 0; i < n; ++i) out[i] = (wa * load(a[i]) + wb * load(b[i])) + (wc * load(c[i]) + wd * load(d[i]));
      for (int64_t k = 4; k < count; ++k) {
        const T* GGF_RESTRICT row = rows[k] + offset;
        const A weight = weights[k];
        for (int64_t i = 0; i < n; ++i) out[i] += weight * load(row[i]);
      }
  }
}

}  // namespace ggf
