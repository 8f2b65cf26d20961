// SPDX-License-Identifier: Apache-2.0
// Mutual nearest neighbours of two sets of vectors, without the table of their products.
// Maths: gangealing_fast/ops/mutual_nearest.py.
//
// A group of strips of the second stays in the first cache while all of the first pass by. Each row keeps the largest product so far
// in every lane, and the strip that it was found in; each column keeps its largest.
#include "strips.h"

#include <cmath>
#include <limits>
#include <vector>

namespace ggf::mutual_nearest {

// Bytes of the strips that are passed together.
inline constexpr int64_t group_bytes = 24576;

template <typename A>
struct Pairs {
  const A *first, *second;  // [N, rows, depth], [N, columns, depth]
  int64_t* place;           // [N, rows]
  A* likeness;              // [N, rows]
  int64_t rows, columns, depth;
};

template <typename A>
using Whole = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

template <typename A>
struct Scratch {
  A *strips, *best, *column;  // [strips, depth, lanes], [rows, lanes], [strips, lanes]
  Whole<A>* where;            // [rows, lanes]: the number of the strip
  int64_t* owner;             // [columns]
};

// What one strip adds to what rows [first, first + size) and the strip's columns have found.
template <Level level, int64_t size, typename A>
GGF_INLINE void pass(const Pairs<A>& p, const Scratch<A>& s, const A* a, int64_t first, int64_t strip) {
  using R = Register<level, A>;
  typedef Whole<A> I __attribute__((vector_size(sizeof(R))));
  constexpr int64_t step = lanes<A>;
  Sums<R, size, strip_parts<level, A>> sums;
  sums.for_each([](int64_t, int64_t, R& sum) GGF_INLINE_LAMBDA { sum = R{}; });
  sums.add_products(a + first * p.depth, p.depth, s.strips + strip * p.depth * step, p.depth);
  sums.for_each([&](int64_t r, int64_t part, const R& sum) GGF_INLINE_LAMBDA {
    R best, column;
    I where;
    const int64_t row = (first + r) * step + part * sums.width, own = strip * step + part * sums.width;
    std::memcpy(&best, s.best + row, sizeof(R));
    std::memcpy(&where, s.where + row, sizeof(R));
    std::memcpy(&column, s.column + own, sizeof(R));
    // Whatever does not compare, NaN, is never larger.
    const I larger = sum > best;
    best = larger ? sum : best;
    where = larger ? I{} + static_cast<Whole<A>>(strip) : where;
    column = sum > column ? sum : column;
    std::memcpy(s.best + row, &best, sizeof(R));
    std::memcpy(s.where + row, &where, sizeof(R));
    std::memcpy(s.column + own, &column, sizeof(R));
  });
}

// The first column of the row's largest product, -1 if there is none.
template <typename A>
GGF_INLINE int64_t nearest_column(const Scratch<A>& s, int64_t row, A& largest) {
  constexpr int64_t step = lanes<A>;
  int64_t found = -1;
  largest = -std::numeric_limits<A>::infinity();
  for (int64_t lane = 0; lane < step; ++lane) {
    const A value = s.best[row * step + lane];
    const int64_t column = s.where[row * step + lane] * step + lane;
    if (value > largest || (value == largest && found >= 0 && column < found)) {
      largest = value;
      found = column;
    }
  }
  return found;
}

template <Level level, typename A>
GGF_INLINE void match(const Pairs<A>& p, const Scratch<A>& s, int64_t pair) {
  constexpr int64_t step = lanes<A>;
  const int64_t strips = strips_of<A>(p.columns);
  const A* a = p.first + pair * p.rows * p.depth;
  const A least = -std::numeric_limits<A>::infinity();
  put_into_strips(p.second + pair * p.columns * p.depth, p.columns, p.depth, s.strips);
  // Columns of the last strip that do not exist: their products are NaN, which is never the largest.
  if (p.depth > 0)
    std::fill(s.strips + (strips - 1) * p.depth * step + p.columns - (strips - 1) * step,
              s.strips + (strips - 1) * p.depth * step + step, std::numeric_limits<A>::quiet_NaN());
  std::fill_n(s.best, p.rows * step, least);
  std::fill_n(s.where, p.rows * step, Whole<A>(0));
  std::fill_n(s.column, strips * step, least);
  const int64_t together = std::max<int64_t>(1, group_bytes / std::max<int64_t>(1, p.depth * step * int64_t(sizeof(A))));
  for (int64_t group = 0; group < strips; group += together)
    for_tiles<rows_in_registers<level>>(p.rows, [&](auto size, int64_t first) GGF_INLINE_LAMBDA {
      for (int64_t strip = group; strip < std::min(strips, group + together); ++strip)
        pass<level, decltype(size)::value>(p, s, a, first, strip);
    });
  std::fill_n(s.owner, p.columns, int64_t(-1));
  for (int64_t row = 0; row < p.rows; ++row) {
    A& largest = p.likeness[pair * p.rows + row];
    const int64_t column = nearest_column(s, row, largest);
    // Of rows that are exactly alike the first one has the column.
    const bool mutual = column >= 0 && largest == s.column[column] && s.owner[column] < 0;
    if (mutual) s.owner[column] = row;
    p.place[pair * p.rows + row] = mutual ? column : -1;
  }
}

template <typename A>
void run(const Pairs<A>& p, int64_t pairs) {
  constexpr int64_t step = lanes<A>;
  const int64_t columns = strips_of<A>(p.columns) * step;
  parallel_for(0, pairs, {1, p.rows * p.columns * std::max<int64_t>(1, p.depth / 8)}, [&](int64_t begin, int64_t end) {
    const Room<A> numbers(columns * (p.depth + 1) + p.rows * step);
    const Room<Whole<A>> where(p.rows * step);
    std::vector<int64_t> owner(p.columns);
    A *strips = numbers.data(), *best = strips + columns * p.depth, *column = best + p.rows * step;
    const Scratch<A> scratch{strips, best, column, where.data(), owner.data()};
    for (int64_t pair = begin; pair < end; ++pair)
      at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { match<level>(all...); }>(p, scratch, pair);
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& first_, const Tensor& second_) {
  STD_TORCH_CHECK(first_.dim() == 3 && second_.dim() == 3 && first_.size(0) == second_.size(0) &&
                      first_.size(2) == second_.size(2) && first_.scalar_type() == second_.scalar_type(),
                  "mutual_nearest: first must be [N, P, D] and second [N, Q, D], of one dtype");
  const int64_t pairs = first_.size(0), rows = first_.size(1);
  const Tensor place = empty({pairs, rows}, ScalarType::Long);
  Tensor likeness;
  dispatch_floating(first_.scalar_type(), "mutual_nearest", [&]<typename T>() {
    using A = Compute<T>;
    const Tensor first = converted(first_, compute_scalar_type<A>), second = converted(second_, compute_scalar_type<A>);
    likeness = empty({pairs, rows}, compute_scalar_type<A>);
    const Pairs<A> p{first.const_data_ptr<A>(),
                     second.const_data_ptr<A>(),
                     place.mutable_data_ptr<int64_t>(),
                     likeness.mutable_data_ptr<A>(),
                     rows,
                     second.size(1),
                     first.size(2)};
    if (p.columns > 0) return run(p, pairs);
    std::fill_n(p.place, pairs * rows, int64_t(-1));
    std::fill_n(p.likeness, pairs * rows, -std::numeric_limits<A>::infinity());
  });
  return {place, likeness};
}

}  // namespace ggf::mutual_nearest

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) { m.impl("mutual_nearest", TORCH_BOX(&ggf::mutual_nearest::forward)); }
