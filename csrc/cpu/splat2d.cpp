// SPDX-License-Identifier: Apache-2.0
// Splatting in bands of rows, each of which adds its points in their order. Maths: gangealing_fast/ops/splat2d.py.
//
// A pixel's sums lie together, [C values, weight], and the weights of a point are an outer product: a row of its window
// is the vector (weights along x) x (values, 1), made once per point, times one weight along y. Vectors are padded with
// zeros to whole groups of lanes; what they reach beyond the window's row gets zeros added. The backward reads the same
// rows of the gradient of the sums, [C gradients of S, gradient of A], weighted by the powers 0 to 2 of the distance in y.
#include "../splat2d.h"

#include "levels.h"
#include "exponential.h"
#include "wide.h"

#include <algorithm>
#include <tuple>

namespace ggf::splat2d {

inline constexpr int64_t band_rows = 16, lanes = 16;

constexpr int64_t padded(int64_t count) { return (count + lanes - 1) / lanes * lanes; }

template <typename A>
struct Points {
  const A *xy, *values, *sigma;  // [N, P, 2], [N, P, C], [N, P]
  int64_t count, channels, height, width;

  bool paint(int64_t p) const { return paints(xy[2 * p], xy[2 * p + 1], sigma[p], static_cast<A>(width), static_cast<A>(height)); }
  Window columns(int64_t p) const { return window(xy[2 * p], sigma[p], static_cast<A>(width)); }
  Window rows(int64_t p) const { return window(xy[2 * p + 1], sigma[p], static_cast<A>(height)); }
};

// weight[i] for the pixels begin + i, and their distances in sigmas where they have weight; up to padded(end - begin).
template <typename A>
GGF_INLINE void weigh(A centre, A sigma, Window pixels, A* GGF_RESTRICT weight, A* GGF_RESTRICT distance) {
  const A first = static_cast<A>(pixels.begin) - centre, scale = 1 / sigma, least = least_argument<A>;
  for (int64_t start = 0; start < pixels.end - pixels.begin; start += lanes)
    for (int64_t k = 0; k < lanes; ++k) {
      const A d = (first + static_cast<A>(static_cast<int32_t>(start + k))) * scale, squared = d * d;
      const bool near = squared < A(reach);
      weight[start + k] = near ? exponential(-(near ? squared : A(0)) / 2, least) : A(0);
      distance[start + k] = near ? d : A(0);
    }
}

// The points of every band of every sample, in order: those of band b are points[starts[b]] to points[starts[b + 1]].
struct Bands {
  int64_t per_sample;
  std::vector<int64_t> starts;
  std::vector<int32_t> points;
};

template <typename A>
Bands sort_into_bands(const Points<A>& points, int64_t batch) {
  Bands bands{ceil_divide(points.height, band_rows), {}, {}};
  bands.starts.assign(batch * bands.per_sample + 1, 0);
  const auto each = [&](const auto& body) {
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t i = 0; i < points.count; ++i) {
        const int64_t p = n * points.count + i;
        if (!points.paint(p)) continue;
        const Window rows = points.rows(p);
        for (int64_t band = rows.begin / band_rows; band <= (rows.end - 1) / band_rows; ++band)
          body(n * bands.per_sample + band, i);
      }
  };
  each([&](int64_t band, int64_t) { ++bands.starts[band + 1]; });
  for (size_t band = 1; band < bands.starts.size(); ++band) bands.starts[band] += bands.starts[band - 1];
  bands.points.resize(bands.starts.back());
  std::vector<int64_t> next(bands.starts.begin(), bands.starts.end() - 1);
  each([&](int64_t band, int64_t i) { bands.points[next[band]++] = static_cast<int32_t>(i); });
  return bands;
}

// Where the pixels of images [N, C, H, W] lie, contiguous or channels-last.
struct Layout {
  int64_t sample, channel, pixel;
};

inline Layout layout_of(int64_t channels, int64_t pixels, bool channels_last) {
  return {channels * pixels, channels_last ? 1 : pixels, channels_last ? channels : 1};
}

// Runs body(size, step) for the numbers of a pixel's sums and the distance of an image's pixels: constants for pictures of one
// and three channels, contiguous, so that loops over pixels vectorise.
template <typename Body>
GGF_INLINE void with_strides(int64_t size, int64_t step, const Body& body) {
  using One = std::integral_constant<int64_t, 1>;
  if (size == 4 && step == 1)
    body(std::integral_constant<int64_t, 4>(), One());
  else if (size == 2)
    body(std::integral_constant<int64_t, 2>(), One());
  else if (step == 1)
    body(size, One());
  else
    body(size, step);
}

template <typename A>
struct Forward {
  Points<A> points;
  const A* background;
  A *result, *total;
  Layout layout;
  bool soft;
};

template <typename A>
GGF_INLINE void paint_bands(const Forward<A>& p, const Bands& bands, int64_t begin, int64_t end) {
  const int64_t channels = p.points.channels, width = p.points.width, size = channels + 1;
  std::vector<A> sums(band_rows * width * size + padded(size)), row(padded(width * size)), one(size, A(1));
  std::vector<A> across(padded(width)), down(padded(p.points.height)), unused(std::max(padded(width), padded(p.points.height)));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sample = item / bands.per_sample, top = item % bands.per_sample * band_rows;
    const int64_t bottom = std::min(top + band_rows, p.points.height);
    std::fill(sums.begin(), sums.end(), A(0));
    for (int64_t entry = bands.starts[item]; entry < bands.starts[item + 1]; ++entry) {
      const int64_t point = sample * p.points.count + bands.points[entry];
      const A sigma = p.points.sigma[point];
      const A* GGF_RESTRICT values = p.points.values + point * channels;
      const Window columns = p.points.columns(point);
      Window rows = p.points.rows(point);
      rows = {std::max(rows.begin, static_cast<int32_t>(top)), std::min(rows.end, static_cast<int32_t>(bottom))};
      weigh(p.points.xy[2 * point], sigma, columns, across.data(), unused.data());
      weigh(p.points.xy[2 * point + 1], sigma, rows, down.data(), unused.data());
      const int64_t count = columns.end - columns.begin, length = padded(count * size);
      A* GGF_RESTRICT source = row.data();
      for (int64_t i = length - lanes; i < length; ++i) source[i] = 0;
      std::copy_n(values, channels, one.data());
      with_strides(size, 1, [&](auto numbers, auto) GGF_INLINE_LAMBDA {
        for (int64_t i = 0; i < count; ++i)
          for (int64_t c = 0; c < numbers; ++c) source[i * numbers + c] = across[i] * one[c];
      });
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        A* GGF_RESTRICT target = sums.data() + ((y - top) * width + columns.begin) * size;
        const A weight = down[y - rows.begin];
        for (int64_t start = 0; start < length; start += lanes)
          for (int64_t k = 0; k < lanes; ++k) target[start + k] += weight * source[start + k];
      }
    }
    for (int64_t y = top; y < bottom; ++y) {
      const A* GGF_RESTRICT painted = sums.data() + (y - top) * width * size;
      const int64_t offset = sample * p.layout.sample + y * width * p.layout.pixel;
      A* GGF_RESTRICT total = p.total + (sample * p.points.height + y) * width;
      with_strides(size, p.layout.pixel, [&](auto numbers, auto step) GGF_INLINE_LAMBDA {
        for (int64_t x = 0; x < width; ++x) {
          total[x] = painted[x * numbers + numbers - 1];
          across[x] = 1 / divisor(total[x], p.soft);
        }
        for (int64_t c = 0; c < numbers - 1; ++c) {
          const A* GGF_RESTRICT background = p.background + offset + c * p.layout.channel;
          A* GGF_RESTRICT result = p.result + offset + c * p.layout.channel;
          const A* GGF_RESTRICT scale = across.data();
          for (int64_t x = 0; x < width; ++x) result[x * step] = (background[x * step] + painted[x * numbers + c]) * scale[x];
        }
      });
    }
  }
}

void check_points(const Tensor& image, const Tensor& xy, const Tensor& values, const Tensor& sigma) {
  STD_TORCH_CHECK(image.dim() == 4 && xy.dim() == 3 && xy.size(0) == image.size(0) && xy.size(2) == 2 && values.dim() == 3 &&
                      values.size(0) == xy.size(0) && values.size(1) == xy.size(1) && values.size(2) == image.size(1) &&
                      sigma.dim() == 2 && sigma.size(0) == xy.size(0) && sigma.size(1) == xy.size(1) && image.size(2) < (1 << 24) &&
                      image.size(3) < (1 << 24) && xy.size(1) <= INT32_MAX,
                  "splat2d: the arguments do not fit together");
  for (const Tensor* tensor : {&xy, &values, &sigma})
    STD_TORCH_CHECK(tensor->scalar_type() == image.scalar_type(), "splat2d: the arguments must be of one dtype");
}

template <typename A>
Points<A> points_of(const Tensor& image, const Tensor& xy, const Tensor& values, const Tensor& sigma) {
  return {xy.const_data_ptr<A>(), values.const_data_ptr<A>(), sigma.const_data_ptr<A>(), xy.size(1), image.size(1), image.size(2),
          image.size(3)};
}

std::tuple<Tensor, Tensor> forward(const Tensor& background_, const Tensor& xy_, const Tensor& values_, const Tensor& sigma_,
                                   bool soft) {
  check_points(background_, xy_, values_, sigma_);
  const bool channels_last = is_channels_last(background_);
  const Tensor background = in_layout(background_, channels_last), xy = in_layout(xy_, false);
  const Tensor values = in_layout(values_, false), sigma = in_layout(sigma_, false);
  const int64_t batch = background.size(0), height = background.size(2), width = background.size(3);
  const Tensor result = empty(sizes_of(background), background.scalar_type(), channels_last);
  const Tensor total = empty({batch, 1, height, width}, background.scalar_type());
  if (total.numel() > 0)
    dispatch_wide(background.scalar_type(), "splat2d", [&]<typename A>() {
      const Points<A> points = points_of<A>(background, xy, values, sigma);
      const Bands bands = sort_into_bands(points, batch);
      const Forward<A> p{points,
                         background.template const_data_ptr<A>(),
                         result.template mutable_data_ptr<A>(),
                         total.template mutable_data_ptr<A>(),
                         layout_of(points.channels, height * width, channels_last),
                         soft};
      parallel_for(0, batch * bands.per_sample, grain(band_rows * width * (points.channels + 1)),
                   [&](int64_t begin, int64_t end) { at_level<paint_bands<A>>(p, bands, begin, end); });
    });
  return {result, total};
}

template <typename A>
struct Backward {
  Points<A> points;
  const A *grad, *result, *total;
  A *grad_background, *grad_sums;  // grad_sums: [H * W, C + 1] of one sample, and lanes to read beyond
  A *grad_xy, *grad_values, *grad_sigma;
  Layout layout;
  bool soft;
};

// The gradients of S, which is that of the background too, and of A.
template <typename A>
GGF_INLINE void differentiate_rows(const Backward<A>& p, int64_t begin, int64_t end) {
  const int64_t width = p.points.width, size = p.points.channels + 1;
  std::vector<A> scale_(width), sum_(width);
  A *GGF_RESTRICT scale = scale_.data(), *GGF_RESTRICT sum = sum_.data();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row / p.points.height * p.layout.sample + row % p.points.height * width * p.layout.pixel;
    const A* GGF_RESTRICT total = p.total + row * width;
    A* GGF_RESTRICT sums = p.grad_sums + row % p.points.height * width * size;
    with_strides(size, p.layout.pixel, [&](auto numbers, auto step) GGF_INLINE_LAMBDA {
      for (int64_t x = 0; x < width; ++x) {
        scale[x] = 1 / divisor(total[x], p.soft);
        sum[x] = 0;
      }
      for (int64_t c = 0; c < numbers - 1; ++c) {
        const int64_t start = offset + c * p.layout.channel;
        const A *GGF_RESTRICT grad = p.grad + start, *GGF_RESTRICT result = p.result + start;
        A* GGF_RESTRICT background = p.grad_background + start;
        for (int64_t x = 0; x < width; ++x) {
          const A value = grad[x * step] * scale[x];
          background[x * step] = value;
          sum[x] += value * result[x * step];
        }
      }
      const A* GGF_RESTRICT background = p.grad_background + offset;
      for (int64_t x = 0; x < width; ++x) {
        for (int64_t c = 0; c < numbers - 1; ++c) sums[x * numbers + c] = background[x * step + c * p.layout.channel];
        sums[x * numbers + numbers - 1] = p.soft && total[x] < 1 ? A(0) : -sum[x];
      }
    });
  }
}

template <typename A>
GGF_INLINE void gather_points(const Backward<A>& p, int64_t begin, int64_t end) {
  const int64_t channels = p.points.channels, width = p.points.width, height = p.points.height, size = channels + 1;
  const int64_t longest = padded(width * size);
  std::vector<A> across(padded(width)), x_distance(padded(width)), down(padded(height)), y_distance(padded(height));
  std::vector<A> plain(longest), first(longest), second(longest);  // sums over rows, times distance^0, ^1 and ^2
  for (int64_t point = begin; point < end; ++point) {
    A* GGF_RESTRICT grad_values = p.grad_values + point * channels;
    A grad_x = 0, grad_y = 0, grad_sigma = 0;
    std::fill_n(grad_values, channels, A(0));
    if (p.points.paint(point)) {
      const A sigma = p.points.sigma[point];
      const A* GGF_RESTRICT values = p.points.values + point * channels;
      const Window columns = p.points.columns(point), rows = p.points.rows(point);
      weigh(p.points.xy[2 * point], sigma, columns, across.data(), x_distance.data());
      weigh(p.points.xy[2 * point + 1], sigma, rows, down.data(), y_distance.data());
      const int64_t count = columns.end - columns.begin, length = padded(count * size);
      A *GGF_RESTRICT r0 = plain.data(), *GGF_RESTRICT r1 = first.data(), *GGF_RESTRICT r2 = second.data();
      for (int64_t i = 0; i < length; ++i) r0[i] = r1[i] = r2[i] = 0;
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        const A* GGF_RESTRICT source = p.grad_sums + (y * width + columns.begin) * size;
        const A w0 = down[y - rows.begin], distance = y_distance[y - rows.begin];
        const A w1 = w0 * distance, w2 = w1 * distance;
        for (int64_t start = 0; start < length; start += lanes)
          for (int64_t k = 0; k < lanes; ++k) {
            const A value = source[start + k];
            r0[start + k] += w0 * value;
            r1[start + k] += w1 * value;
            r2[start + k] += w2 * value;
          }
      }
      for (int64_t i = 0; i < count; ++i) {
        const A *GGF_RESTRICT q0 = r0 + i * size, *GGF_RESTRICT q1 = r1 + i * size, *GGF_RESTRICT q2 = r2 + i * size;
        A t0 = q0[channels], t1 = q1[channels], t2 = q2[channels];
        for (int64_t c = 0; c < channels; ++c) {
          t0 += q0[c] * values[c];
          t1 += q1[c] * values[c];
          t2 += q2[c] * values[c];
          grad_values[c] += across[i] * q0[c];
        }
        const A distance = x_distance[i];
        grad_x += across[i] * distance * t0;
        grad_y += across[i] * t1;
        grad_sigma += across[i] * (distance * distance * t0 + t2);
      }
      grad_x /= sigma;
      grad_y /= sigma;
      grad_sigma /= sigma;
    }
    p.grad_xy[2 * point] = grad_x;
    p.grad_xy[2 * point + 1] = grad_y;
    p.grad_sigma[point] = grad_sigma;
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_, const Tensor& result_, const Tensor& total_,
                                                    const Tensor& xy_, const Tensor& values_, const Tensor& sigma_, bool soft) {
  check_points(result_, xy_, values_, sigma_);
  STD_TORCH_CHECK(sizes_of(grad_) == sizes_of(result_) && grad_.scalar_type() == result_.scalar_type() &&
                      total_.numel() == result_.size(0) * result_.size(2) * result_.size(3) &&
                      total_.scalar_type() == result_.scalar_type(),
                  "splat2d_backward: the arguments do not fit together");
  const bool channels_last = is_channels_last(result_);
  const Tensor grad = in_layout(grad_, channels_last), result = in_layout(result_, channels_last);
  const Tensor total = in_layout(total_, false), xy = in_layout(xy_, false);
  const Tensor values = in_layout(values_, false), sigma = in_layout(sigma_, false);
  const ScalarType type = result.scalar_type();
  const int64_t batch = result.size(0), channels = result.size(1), height = result.size(2), width = result.size(3);
  const Tensor grad_background = empty(sizes_of(result), type, channels_last), grad_xy = empty(sizes_of(xy), type);
  const Tensor grad_values = empty(sizes_of(values), type), grad_sigma = empty(sizes_of(sigma), type);
  const int64_t count = xy.size(1), numbers = height * width * (channels + 1);
  const Tensor grad_sums = empty({numbers + lanes}, type);
  dispatch_wide(type, "splat2d_backward", [&]<typename A>() {
    const Backward<A> p{points_of<A>(result, xy, values, sigma),
                        grad.template const_data_ptr<A>(),
                        result.template const_data_ptr<A>(),
                        total.template const_data_ptr<A>(),
                        grad_background.template mutable_data_ptr<A>(),
                        grad_sums.template mutable_data_ptr<A>(),
                        grad_xy.template mutable_data_ptr<A>(),
                        grad_values.template mutable_data_ptr<A>(),
                        grad_sigma.template mutable_data_ptr<A>(),
                        layout_of(channels, height * width, channels_last),
                        soft};
    std::fill_n(p.grad_sums + numbers, lanes, A(0));
    for (int64_t n = 0; n < batch; ++n) {
      parallel_for(n * height, (n + 1) * height, grain(width * (channels + 1)),
                   [&](int64_t begin, int64_t end) { at_level<differentiate_rows<A>>(p, begin, end); });
      parallel_for(n * count, (n + 1) * count, grain(64 * (channels + 1)),
                   [&](int64_t begin, int64_t end) { at_level<gather_points<A>>(p, begin, end); });
    }
  });
  return {grad_background, grad_xy, grad_values, grad_sigma};
}

}  // namespace ggf::splat2d

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) {
  m.impl("splat2d", TORCH_BOX(&ggf::splat2d::forward));
  m.impl("splat2d_backward", TORCH_BOX(&ggf::splat2d::backward));
}
