// SPDX-License-Identifier: Apache-2.0
// 3x3 convolution of channels-last float32 images with stride 1 and padding 1 by the algorithm F(4x4, 3x3) of Winograd (Lavin
// and Gray, arXiv 1509.09308): 36 products where the definition has 144.
//
// All products and sums are float32. The transforms amplify rounding: results err relatively (2-norm, normal inputs and weights)
// by 1.4e-6, 2.5e-6 and 4.6e-6 at 32, 128 and 512 channels, where torch's convolution errs by 3.1e-7, 6.0e-7 and 1.2e-6
// (tests/test_winograd.py).
#pragma once

#include "../common.h"

#include <memory>

namespace ggf::winograd {

// Weights in the transformed domain: [36, channels_out / 32 rounded up, channels_in, 32].
struct Weights {
  int64_t channels_in, channels_out;
  std::shared_ptr<const float[]> data;
};

// Transforms weight [Cout, Cin, 3, 3], any strides; or, with `transposed`, the weights of the convolution that gives the
// gradient of the input. What has been asked for three times with the same content at the same place is kept,
// within a limit of 640 MiB for the process, and taken from there as long as every bit of the weight is as it was.
Weights transform(const Tensor& weight, bool transposed);

struct Convolution {
  const float* x;  // [N, H, W, Cin]
  int64_t batch, height, width;
  Weights weights;
  float* y;                          // [N, H, W, Cout]
  const float* scale_in = nullptr;   // [N, Cin], or null
  const float* scale_out = nullptr;  // [N, Cout], or null
  // y = gain * lrelu(y + noise * strength + bias), where there is a bias
  const float* bias = nullptr;   // [Cout]
  const float* noise = nullptr;  // [N or 1, H, W], or null
  int64_t noise_stride = 0;      // 0 where all samples share the noise
  float strength = 0, slope = 1, gain = 1;
  // dots[n, c] = sum over pixels of other * the convolution before scale_out, where both are given
  const float* other = nullptr;  // [N, H, W, Cout]
  float* dots = nullptr;         // [N, Cout]
};

void convolve(const Convolution& convolution);

}  // namespace ggf::winograd
