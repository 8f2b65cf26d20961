// SPDX-License-Identifier: Apache-2.0
// Huber total variation and mean square of a flow [N, H, W, 2] in one pass. Maths:
// gangealing_fast/ops/flow_regularizer.py.
//
// A row is taken as 2 W numbers whose horizontal neighbours are 2 apart. Sums are formed over fixed pieces of rows and
// then added in order, so that the result does not depend on the number of threads.
#include "../common.h"
#include "levels.h"

#include <algorithm>
#include <array>
#include <tuple>

#define GGF_LAMBDA __attribute__((always_inline))

namespace ggf::flow_regularizer {

inline constexpr int64_t piece_rows = 32;

template <typename A>
GGF_INLINE A huber(A difference) {
  const A magnitude = difference < 0 ? -difference : difference;
  const A limited = A(1) < magnitude ? A(1) : magnitude;
  return limited * (magnitude - A(0.5) * limited);
}

template <typename A>
GGF_INLINE A limit(A difference) {
  const A upper = A(1) < difference ? A(1) : difference;  // this order keeps NaN and compiles to one minimum
  return A(-1) > upper ? A(-1) : upper;
}

// A sum in a fixed number of lanes: without them the compiler may not vectorise it.
template <typename A>
struct Lanes {
  static constexpr int64_t count = 64 / sizeof(A);
  A lane[count] = {};

  template <typename Term>
  GGF_INLINE void add(int64_t size, const Term& term) {
    int64_t i = 0;
    for (; i + count <= size; i += count)
      for (int64_t k = 0; k < count; ++k) lane[k] += term(i + k);
    if (i == size) return;
    if (size < count) {
      for (; i < size; ++i) lane[i] += term(i);
      return;
    }
    // The last, partial group: a whole one that ends with the row, without what has been added already.
    const int64_t first = size - count;
    for (int64_t k = 0; k < count; ++k) lane[k] += first + k >= i ? term(first + k) : A(0);
  }

  double total() const {
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += lane[k];
    return sum;
  }
};

struct Sums {
  double vertical = 0, horizontal = 0, square = 0;
};

template <typename T>
GGF_INLINE void sum_rows(const T* flow, int64_t height, int64_t row, int64_t begin, int64_t end, Sums& sums) {
  using A = Compute<T>;
  Lanes<A> vertical, horizontal, square;
  for (int64_t y = begin; y < end; ++y) {
    const T* GGF_RESTRICT here = flow + y * row;
    const T* GGF_RESTRICT below = here + row;
    const auto down = [&](int64_t i) GGF_LAMBDA { return huber(load(below[i]) - load(here[i])); };
    const auto across = [&](int64_t i) GGF_LAMBDA { return huber(load(here[i + 2]) - load(here[i])); };
    const auto own = [&](int64_t i) GGF_LAMBDA { return load(here[i]) * load(here[i]); };
    if (y + 1 < height) vertical.add(row, down);
    horizontal.add(row - 2, across);
    square.add(row, own);
  }
  sums = {vertical.total(), horizontal.total(), square.total()};
}

std::tuple<Tensor, Tensor> forward(const Tensor& flow_) {
  STD_TORCH_CHECK(flow_.dim() == 4 && flow_.size(3) == 2, "flow_regularizer: flow must be [N, H, W, 2]");
  const Tensor flow = in_layout(flow_, false);
  const int64_t batch = flow.size(0), height = flow.size(1), row = flow.size(2) * 2;
  STD_TORCH_CHECK(height > 0 && row > 0, "flow_regularizer: flow has no points");
  return dispatch_floating(flow.scalar_type(), "flow_regularizer", [&]<typename T>() {
    using A = Compute<T>;
    const Tensor variation = empty({batch}, compute_scalar_type<T>), identity = empty({batch}, compute_scalar_type<T>);
    const T* data = flow.template const_data_ptr<T>();
    const int64_t pieces = ceil_divide(height, piece_rows);
    std::vector<Sums> sums(batch * pieces);
    parallel_for(0, batch * pieces, grain(piece_rows * row), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t sample = item / pieces, first = item % pieces * piece_rows;
        at_level<sum_rows<T>>(data + sample * height * row, height, row, first, std::min(height, first + piece_rows), sums[item]);
      }
    });
    for (int64_t sample = 0; sample < batch; ++sample) {
      Sums total;
      for (int64_t part = 0; part < pieces; ++part) {
        const Sums& sum = sums[sample * pieces + part];
        total.vertical += sum.vertical;
        total.horizontal += sum.horizontal;
        total.square += sum.square;
      }
      double value = 0;
      if (row > 2) value += total.horizontal / static_cast<double>(height * (row - 2));
      if (height > 1) value += total.vertical / static_cast<double>((height - 1) * row);
      variation.template mutable_data_ptr<A>()[sample] = static_cast<A>(value);
      identity.template mutable_data_ptr<A>()[sample] = static_cast<A>(total.square / static_cast<double>(height * row));
    }
    return std::tuple(variation, identity);
  });
}

template <typename A>
struct Factors {
  A vertical, horizontal, square;
};

// Rows [begin, end) of a sample. Every limited difference is the derivative by two neighbours: it is worked out once, for
// a row at a time, in `lines`, which has room for 3 row + 4 numbers.
template <typename T>
GGF_INLINE void gradient_rows(const T* flow, T* output, const Factors<Compute<T>> factors, int64_t height, int64_t row,
                              int64_t begin, int64_t end, Compute<T>* lines) {
  using A = Compute<T>;
  A* GGF_RESTRICT across = lines;  // of element i and the one before it in its row, at i; 0 at both ends
  A* GGF_RESTRICT above = lines + row + 4;
  A* GGF_RESTRICT below = above + row;
  across[0] = across[1] = across[row] = across[row + 1] = 0;
  std::fill_n(above, row, A(0));
  if (begin > 0) {
    const T* GGF_RESTRICT here = flow + begin * row;
    for (int64_t i = 0; i < row; ++i) above[i] = limit(load(here[i]) - load(here[i - row]));
  }
  for (int64_t y = begin; y < end; ++y) {
    const T* GGF_RESTRICT here = flow + y * row;
    T* GGF_RESTRICT result = output + y * row;
    for (int64_t i = 2; i < row; ++i) across[i] = limit(load(here[i]) - load(here[i - 2]));
    if (y + 1 < height)
      for (int64_t i = 0; i < row; ++i) below[i] = limit(load(here[i + row]) - load(here[i]));
    else
      std::fill_n(below, row, A(0));
    for (int64_t i = 0; i < row; ++i)
      result[i] = store<T>(factors.vertical * (above[i] - below[i]) + factors.horizontal * (across[i] - across[i + 2]) +
                           factors.square * load(here[i]));
    std::swap(above, below);
  }
}

Tensor backward(const Tensor& grad_variation_, const Tensor& grad_identity_, const Tensor& flow_) {
  STD_TORCH_CHECK(flow_.dim() == 4 && flow_.size(3) == 2, "flow_regularizer_backward: flow must be [N, H, W, 2]");
  const Tensor flow = in_layout(flow_, false);
  const int64_t batch = flow.size(0), height = flow.size(1), row = flow.size(2) * 2;
  const Tensor grad_variation = in_layout(grad_variation_, false);
  const Tensor grad_identity = in_layout(grad_identity_, false);
  STD_TORCH_CHECK(grad_variation.numel() == batch && grad_identity.numel() == batch && height > 0 && row > 0,
                  "flow_regularizer_backward: one gradient per sample is needed");
  const Tensor result = empty(sizes_of(flow), flow.scalar_type());
  dispatch_floating(flow.scalar_type(), "flow_regularizer_backward", [&]<typename T>() {
    using A = Compute<T>;
    const A* tv = grad_variation.template const_data_ptr<A>();
    const A* identity = grad_identity.template const_data_ptr<A>();
    const T* data = flow.template const_data_ptr<T>();
    T* out = result.template mutable_data_ptr<T>();
    const int64_t pieces = ceil_divide(height, piece_rows);
    parallel_for(0, batch * pieces, grain(piece_rows * row), [&](int64_t begin, int64_t end) {
      std::vector<A> lines(3 * row + 4);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t sample = item / pieces, first = item % pieces * piece_rows, offset = sample * height * row;
        const Factors<A> factors{height > 1 ? tv[sample] / static_cast<A>((height - 1) * row) : A(0),
                                 row > 2 ? tv[sample] / static_cast<A>(height * (row - 2)) : A(0),
                                 2 * identity[sample] / static_cast<A>(height * row)};
        at_level<gradient_rows<T>>(data + offset, out + offset, factors, height, row, first, std::min(height, first + piece_rows),
                                   lines.data());
      }
    });
  });
  return result;
}

}  // namespace ggf::flow_regularizer

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("flow_regularizer", TORCH_BOX(&ggf::flow_regularizer::forward));
  m.impl("flow_regularizer_backward", TORCH_BOX(&ggf::flow_regularizer::backward));
}
