// SPDX-License-Identifier: Apache-2.0
// Adam and the running average of the weights, all tensors in one pass. Maths: gangealing_fast/ops/adam_ema.py.
//
// The work is cut into fixed blocks of elements, whatever tensor they belong to, so that a hundred small tensors cost no more
// than one large one.
#include "../common.h"
#include "levels.h"

#include <algorithm>
#include <cmath>

namespace ggf::adam_ema {

constexpr int64_t kBlock = 16384;

template <typename T>
struct Coefficients {
  T beta1, rest1, beta2, rest2;
  T rate;        // learning rate / (1 - beta1^t)
  T correction;  // 1 / sqrt(1 - beta2^t)
  T epsilon, follow;
};

template <typename T>
GGF_INLINE void update(const Coefficients<T>& c, T gradient, T& parameter, T& first, T& second) {
  first = c.beta1 * first + c.rest1 * gradient;
  second = c.beta2 * second + c.rest2 * (gradient * gradient);
  parameter -= c.rate * first / (std::sqrt(second) * c.correction + c.epsilon);
}

template <typename T, typename G>
struct Arrays {
  T* parameter;
  const G* gradient;
  T* first;
  T* second;
  T* average;  // null where there is none
};

template <typename T, typename G>
GGF_INLINE void update_dense(const Coefficients<T>& coefficients, const Arrays<T, G>& arrays, int64_t begin, int64_t end) {
  const Coefficients<T> c = coefficients;
  T* GGF_RESTRICT parameter = arrays.parameter;
  const G* GGF_RESTRICT gradient = arrays.gradient;
  T* GGF_RESTRICT first = arrays.first;
  T* GGF_RESTRICT second = arrays.second;
  if (arrays.average) {
    T* GGF_RESTRICT average = arrays.average;
    for (int64_t i = begin; i < end; ++i) {
      update<T>(c, load(gradient[i]), parameter[i], first[i], second[i]);
      average[i] += c.follow * (parameter[i] - average[i]);
    }
  } else {
    for (int64_t i = begin; i < end; ++i) update<T>(c, load(gradient[i]), parameter[i], first[i], second[i]);
  }
}

struct Job {
  Tensor parameter, gradient, first, second;
  std::optional<Tensor> average;
  double step;
  bool dense;  // all tensors lie in memory in one order, without gaps
};

// Whether the tensor has the strides of `other`, axes of one element aside.
bool same_strides(const Tensor& x, const Tensor& other) {
  for (int64_t axis = 0; axis < x.dim(); ++axis)
    if (x.size(axis) != 1 && x.stride(axis) != other.stride(axis)) return false;
  return true;
}

bool without_gaps(const Tensor& x) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < x.dim(); ++axis) last += (x.size(axis) - 1) * x.stride(axis);
  return x.numel() == 0 || last + 1 == x.numel();
}

// Position of element `index`, counted row by row, in memory.
int64_t offset(const Tensor& x, int64_t index) {
  int64_t position = 0;
  for (int64_t axis = x.dim() - 1; axis >= 0; --axis) {
    position += index % x.size(axis) * x.stride(axis);
    index /= x.size(axis);
  }
  return position;
}

template <typename T, typename G>
void update_strided(const Coefficients<T>& c, const Arrays<T, G>& arrays, const Job& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    T& parameter = arrays.parameter[offset(job.parameter, i)];
    update<T>(c, load(arrays.gradient[offset(job.gradient, i)]), parameter, arrays.first[offset(job.first, i)],
              arrays.second[offset(job.second, i)]);
    if (arrays.average) {
      T& average = arrays.average[offset(*job.average, i)];
      average += c.follow * (parameter - average);
    }
  }
}

struct Settings {
  double learning_rate, beta1, beta2, epsilon, decay;
};

template <typename T, typename G>
void run(const Job& job, const Settings& s, int64_t begin, int64_t end) {
  const Coefficients<T> c{static_cast<T>(s.beta1),
                          static_cast<T>(1 - s.beta1),
                          static_cast<T>(s.beta2),
                          static_cast<T>(1 - s.beta2),
                          static_cast<T>(s.learning_rate / (1 - std::pow(s.beta1, job.step))),
                          static_cast<T>(1 / std::sqrt(1 - std::pow(s.beta2, job.step))),
                          static_cast<T>(s.epsilon),
                          static_cast<T>(1 - s.decay)};
  const Arrays<T, G> arrays{job.parameter.mutable_data_ptr<T>(), job.gradient.const_data_ptr<G>(), job.first.mutable_data_ptr<T>(),
                            job.second.mutable_data_ptr<T>(), job.average ? job.average->mutable_data_ptr<T>() : nullptr};
  if (job.dense) {
    at_level<update_dense<T, G>>(c, arrays, begin, end);
  } else {
    update_strided<T, G>(c, arrays, job, begin, end);
  }
}

void run_block(const Job& job, const Settings& settings, int64_t begin, int64_t end) {
  dispatch_floating(job.gradient.scalar_type(), "adam_ema", [&]<typename G>() {
    if (job.parameter.scalar_type() == ScalarType::Double) {
      run<double, G>(job, settings, begin, end);
    } else if constexpr (!std::is_same_v<G, double>) {
      run<float, G>(job, settings, begin, end);
    }
  });
}

void adam_ema(std::vector<Tensor> parameters, std::vector<Tensor> gradients, std::vector<Tensor> first, std::vector<Tensor> second,
              std::vector<Tensor> averages, std::vector<double> steps, double learning_rate, double beta1, double beta2,
              double epsilon, double decay) {
  const size_t count = parameters.size();
  STD_TORCH_CHECK(gradients.size() == count && first.size() == count && second.size() == count && steps.size() == count &&
                      (averages.empty() || averages.size() == count),
                  "adam_ema: the lists must be equally long");
  std::vector<Job> jobs;
  jobs.reserve(count);
  struct Block {
    size_t job;
    int64_t begin, end;
  };
  std::vector<Block> blocks;
  int64_t total = 0;
  for (size_t k = 0; k < count; ++k) {
    const Tensor& p = parameters[k];
    const ScalarType type = p.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "adam_ema: parameters must be float32 or float64");
    // A float64 gradient of a float32 parameter is rounded first, as the reference does.
    Tensor gradient = gradients[k];
    if (gradient.scalar_type() == ScalarType::Double && type == ScalarType::Float)
      gradient = torch::stable::to(gradient, ScalarType::Float);
    Job job{p, gradient, first[k], second[k], averages.empty() ? std::nullopt : std::optional(averages[k]), steps[k], true};
    const auto check = [&](const Tensor& other, bool any_type) {
      STD_TORCH_CHECK(sizes_of(other) == sizes_of(p) && (any_type || other.scalar_type() == type),
                      "adam_ema: tensors of one parameter must have one shape and dtype");
      job.dense = job.dense && same_strides(p, other);
    };
    job.dense = without_gaps(p);
    check(job.gradient, true);
    check(job.first, false);
    check(job.second, false);
    if (job.average) check(*job.average, false);
    for (int64_t begin = 0; begin < p.numel(); begin += kBlock) blocks.push_back({k, begin, std::min(p.numel(), begin + kBlock)});
    total += p.numel();
    jobs.push_back(std::move(job));
  }
  if (total == 0) return;
  const Settings settings{learning_rate, beta1, beta2, epsilon, decay};
  const int64_t number = static_cast<int64_t>(blocks.size());
  const Grain each{std::max<int64_t>(1, 2 * kBlock * number / total), ceil_divide(total, number)};
  parallel_for(0, number, each, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) run_block(jobs[blocks[k].job], settings, blocks[k].begin, blocks[k].end);
  });
}

}  // namespace ggf::adam_ema

STABLE_TORCH_LIBRARY_IMPL(gangealing_fast, CPU, m) { m.impl("adam_ema", TORCH_BOX(&ggf::adam_ema::adam_ema)); }
