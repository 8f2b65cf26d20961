// SPDX-License-Identifier: Apache-2.0
// Mutual nearest neighbours of two sets of vectors, without the table of their products.
// Maths: gangealing_fast/ops/mutual_nearest.py.
//
// A group of strips of the second stays in the first cache while some rows of the first pass by. Each row keeps the largest product so
// far in every lane, and the strip that it was found in; each column keeps its largest among these rows. Largest numbers have no order,
// so that rows may be divided among threads.
#include "strips.h"

#include <limits>
#include <vector>

namespace ggf::mutual_nearest {

// Bytes of the strips that are passed together.
inline constexpr int64_t group_bytes = 24576;
// Rows of a task.
inline constexpr int64_t task_rows = 256;
// Bytes of the second in strips that are kept at a time, of several pairs.
inline constexpr int64_t kept_bytes = 16 << 20;

template <typename A>
using Whole = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

template <typename A>
struct Pairs {
  const A *first, *second;  // [N, rows, depth], [N, columns, depth]
  int64_t* place;           // [N, rows]
  A* likeness;              // [N, rows]
  int64_t rows, columns, depth;

  int64_t tasks() const { return ceil_divide(rows, task_rows); }
  int64_t strips() const { return strips_of<A>(columns); }
};

// Of some pairs.
template <typename A>
struct Scratch {
  A* strips;        // [pairs, strips, depth, lanes]
  A* best;          // [pairs, rows, lanes]
  Whole<A>* where;  // [pairs, rows, lanes]: the number of the strip
  A* column;        // [pairs, tasks, strips, lanes]
};

// Of one task.
template <typename A>
struct Task {
  const A *a, *strips;  // rows of the first
  A *best, *column;
  Whole<A>* where;
  int64_t rows;
};

// What one strip adds to what rows [first, first + size) and the strip's columns have found.
template <Level level, int64_t size, typename A>
GGF_INLINE void pass(const Pairs<A>& p, const Task<A>& t, int64_t first, int64_t strip) {
  using R = Register<level, A>;
  typedef Whole<A> I __attribute__((vector_size(sizeof(R))));
  constexpr int64_t step = lanes<A>;
  Sums<R, size, strip_parts<level, A>> sums;
  sums.for_each([](int64_t, int64_t, R& sum) GGF_INLINE_LAMBDA { sum = R{}; });
  sums.add_products(t.a + first * p.depth, p.depth, t.strips + strip * p.depth * step, p.depth);
  sums.for_each([&](int64_t r, int64_t part, const R& sum) GGF_INLINE_LAMBDA {
    R best, column;
    I where;
    const int64_t row = (first + r) * step + part * sums.width, own = strip * step + part * sums.width;
    std::memcpy(&best, t.best + row, sizeof(R));
    std::memcpy(&where, t.where + row, sizeof(R));
    std::memcpy(&column, t.column + own, sizeof(R));
    // Whatever does not compare, NaN, is never larger.
    const I larger = sum > best;
    best = larger ? sum : best;
    where = larger ? I{} + static_cast<Whole<A>>(strip) : where;
    column = sum > column ? sum : column;
    std::memcpy(t.best + row, &best, sizeof(R));
    std::memcpy(t.where + row, &where, sizeof(R));
    std::memcpy(t.column + own, &column, sizeof(R));
  });
}

template <Level level, typename A>
GGF_INLINE void pass_rows(const Pairs<A>& p, const Task<A>& t) {
  constexpr int64_t step = lanes<A>;
  const A least = -std::numeric_limits<A>::infinity();
  std::fill_n(t.best, t.rows * step, least);
  std::fill_n(t.where, t.rows * step, Whole<A>(0));
  std::fill_n(t.column, p.strips() * step, least);
  const int64_t together = std::max<int64_t>(1, group_bytes / std::max<int64_t>(1, p.depth * step * int64_t(sizeof(A))));
  for (int64_t group = 0; group < p.strips(); group += together)
    for_tiles<rows_in_registers<level>>(t.rows, [&](auto size, int64_t first) GGF_INLINE_LAMBDA {
      for (int64_t strip = group; strip < std::min(p.strips(), group + together); ++strip)
        pass<level, decltype(size)::value>(p, t, first, strip);
    });
}

// The second of a pair in strips. Columns of the last one that do not exist are NaN, and so are their products, never the largest.
template <typename A>
GGF_INLINE void put_second(const Pairs<A>& p, const A* second, A* out) {
  put_into_strips(second, p.columns, p.depth, out);
  A* last = out + (p.strips() - 1) * p.depth * lanes<A>;
  if (p.depth > 0) std::fill(last + p.columns - (p.strips() - 1) * lanes<A>, last + lanes<A>, std::numeric_limits<A>::quiet_NaN());
}

// The first column of a row's largest product, -1 if there is none. best, where: [lanes]
template <typename A>
GGF_INLINE int64_t nearest_column(const A* best, const Whole<A>* where, A& largest) {
  int64_t found = -1;
  largest = -std::numeric_limits<A>::infinity();
  for (int64_t lane = 0; lane < lanes<A>; ++lane) {
    const int64_t column = where[lane] * lanes<A> + lane;
    if (best[lane] > largest || (best[lane] == largest && found >= 0 && column < found)) {
      largest = best[lane];
      found = column;
    }
  }
  return found;
}

// What all tasks of a pair have found; column: [tasks, strips, lanes].
template <typename A>
GGF_INLINE void settle(const Pairs<A>& p, const A* best, const Whole<A>* where, A* column, int64_t* place, A* likeness) {
  const int64_t width = p.strips() * lanes<A>;
  for (int64_t task = 1; task < p.tasks(); ++task)
    for (int64_t c = 0; c < width; ++c) column[c] = std::max(column[c], column[task * width + c]);
  std::vector<bool> taken(p.columns, false);
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t found = nearest_column(best + row * lanes<A>, where + row * lanes<A>, likeness[row]);
    // Of rows that are exactly alike the first one has the column.
    const bool mutual = found >= 0 && likeness[row] == column[found] && !taken[found];
    if (mutual) taken[found] = true;
    place[row] = mutual ? found : -1;
  }
}

// Pairs [begin, end).
template <typename A>
void match(const Pairs<A>& p, const Scratch<A>& s, int64_t begin, int64_t end) {
  const int64_t packed = p.strips() * p.depth * lanes<A>, width = p.strips() * lanes<A>, tasks = p.tasks(),
                rows = p.rows * lanes<A>;
  parallel_for(0, end - begin, grain(packed), [&](int64_t first, int64_t last) {
    for (int64_t pair = first; pair < last; ++pair)
      at_level<put_second<A>>(p, p.second + (begin + pair) * p.columns * p.depth, s.strips + pair * packed);
  });
  parallel_for(0, (end - begin) * tasks, grain(task_rows * p.columns * std::max<int64_t>(1, p.depth / 8)),
               [&](int64_t first, int64_t last) {
                 for (int64_t number = first; number < last; ++number) {
                   const int64_t pair = number / tasks, row = number % tasks * task_rows;
                   const Task<A> task{p.first + ((begin + pair) * p.rows + row) * p.depth,
                                      s.strips + pair * packed,
                                      s.best + pair * rows + row * lanes<A>,
                                      s.column + number * width,
                                      s.where + pair * rows + row * lanes<A>,
                                      std::min(task_rows, p.rows - row)};
                   at_each_level<[]<Level level>(const auto&... all) GGF_INLINE_LAMBDA { pass_rows<level>(all...); }>(p, task);
                 }
               });
  parallel_for(0, end - begin, grain(rows + tasks * width), [&](int64_t first, int64_t last) {
    for (int64_t pair = first; pair < last; ++pair)
      at_level<settle<A>>(p, s.best + pair * rows, s.where + pair * rows, s.column + pair * tasks * width,
                          p.place + (begin + pair) * p.rows, p.likeness + (begin + pair) * p.rows);
  });
}

template <typename A>
void run(const Pairs<A>& p, int64_t pairs) {
  const int64_t packed = p.strips() * p.depth * lanes<A>, rows = p.rows * lanes<A>, columns = p.tasks() * p.strips() * lanes<A>;
  const int64_t each = int64_t(sizeof(A)) * (packed + 2 * rows + columns);
  const int64_t together = std::clamp<int64_t>(kept_bytes / std::max<int64_t>(1, each), 1, std::max<int64_t>(1, pairs));
  const Room<A> numbers(together * (packed + rows + columns));
  const Room<Whole<A>> where(together * rows);
  const Scratch<A> scratch{numbers.data(), numbers.data() + together * packed, where.data(),
                           numbers.data() + together * (packed + rows)};
  for (int64_t begin = 0; begin < pairs; begin += together) match(p, scratch, begin, std::min(pairs, begin + together));
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
