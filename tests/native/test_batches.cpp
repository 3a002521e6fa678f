// Batches: the bits of one element after the other.
#include <algorithm>
#include <cmath>

#include "core.h"

namespace fastmmd::test {
namespace {

template <class T>
void element_by_element(const Case& c) {
  const Data<T> data = draw<T>(c);
  Mmd2<T> expected;
  for (int64_t b = 0; b < c.batch; ++b) {
    const Mmd2<T> one = mmd2(element(c), element(c, data, b), 1);
    using R = Mmd2<T>;
    for (auto part : {&R::value, &R::v_x, &R::v_y})
      (expected.*part).insert((expected.*part).end(), (one.*part).begin(), (one.*part).end());
    for (auto part :
         {&R::v_x_weights, &R::v_y_weights, &R::v_scales, &R::v_coefficients, &R::scales})
      (expected.*part).insert((expected.*part).end(), (one.*part).begin(), (one.*part).end());
  }
  for (int threads : {1, 3, 4})
    check(mmd2(c, data, threads) == expected, c.name + type_name<T>() + ", " +
                                                  std::to_string(c.batch) + " elements on " +
                                                  std::to_string(threads) + " threads");
}

// Elements that share memory, lie apart or the wrong way round.
void strides() {
  Case c = {"strides", 12, 15, {7}, {term(Family::laplacian, Unit::mean, 1)}};
  c.batch = 6;
  const Data<float> data = draw<float>(c);
  const Mmd2<float> expected = mmd2(c, data, 1);
  const int64_t size = c.n * 7;

  Case turned_case = c;
  Mmd2Args args = {problem(c, data, 2, nullptr), c.batch, c.estimator, c.size};
  std::vector<float> backwards(2 * c.batch * size);
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t i = 0; i < size; ++i)
      backwards[2 * (c.batch - 1 - b) * size + i] = data.x[b * size + i];
  args.x.data = &backwards[2 * (c.batch - 1) * size];
  args.x.batch_stride = -2 * size;
  check(mmd2<float>(c, args) == expected, "a batch the wrong way round");

  Data<float> repeated = data;
  for (int64_t i = 0; i < c.batch * size; ++i) repeated.x[i] = data.x[i % size];
  args = {problem(c, data, 2, nullptr), c.batch, c.estimator, c.size};
  args.x.batch_stride = 0;
  check(mmd2<float>(c, args) == mmd2(c, repeated, 1), "a batch of one sample repeated");
}

void halves() {
  Case c = {"halves", 9, 8, {3}, {term(Family::gaussian, Unit::mean, 1)}};
  c.batch = 5;
  Data<float> data = draw<float>(c);
  std::vector<uint16_t> x, y;
  auto encode = [](std::vector<float>& values, std::vector<uint16_t>& out) {
    for (float& v : values) {  // small integers: bfloat16 is their upper half
      v = std::round(4 * v);
      uint32_t bits;
      static_assert(sizeof bits == sizeof v);
      std::copy_n(reinterpret_cast<const char*>(&v), 4, reinterpret_cast<char*>(&bits));
      out.push_back(uint16_t(bits >> 16));
    }
  };
  encode(data.x, x);
  encode(data.y, y);
  Mmd2Args args = {problem(c, data, 3, nullptr), c.batch, c.estimator, c.size};
  args.dtype = Dtype::bfloat16;
  args.x.data = x.data();
  args.y.data = y.data();
  check(mmd2<float>(c, args) == mmd2(c, data, 1), "a batch of bfloat16");
}

}  // namespace

void batches() {
  const std::vector<Term> mixture = {term(Family::gaussian, Unit::median, 1),
                                     term(Family::laplacian, Unit::mean, 2, 0.5),
                                     term(Family::energy, 0.1)};
  Case small = {"small", 11, 14, {5}, mixture};
  small.weighted = true;
  Case big = {"big", 230, 190, {24}, mixture};
  big.weighted = true;
  for (int64_t batch : {2, 17}) {
    small.batch = batch;
    element_by_element<float>(small);
    element_by_element<double>(small);
  }
  big.batch = 3;
  element_by_element<float>(big);
  element_by_element<double>(big);

  Case products = {"product", 20, 18, {4, 6}, product({mixture, {term(Family::linear, 0.5)}})};
  products.batch = 7;
  for (auto [estimator, size] : {std::pair<Estimator, int64_t>{Estimator::unbiased, 0},
                                 {Estimator::cross, 0},
                                 {Estimator::linear, 0},
                                 {Estimator::block, 4},
                                 {Estimator::incomplete, 3},
                                 {Estimator::resolve, 0}}) {
    products.estimator = estimator;
    products.size = size;
    products.name = std::string("product, ") + name(estimator);
    element_by_element<float>(products);
  }
  strides();
  halves();
}

}  // namespace fastmmd::test
