// What products check whatever their arrays' memory is: NumPy's rules for matmul, names of activations.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bind/view.h"

namespace qkv {

namespace py = pybind11;

inline Activation activation_of(const char* op, const py::object& name) {
  if (name.is_none()) return Activation::none;
  const struct {
    const char* name;
    Activation value;
  } known[] = {{"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh},   {"relu", Activation::relu},
               {"silu", Activation::silu}, {"quick_gelu", Activation::quick_gelu}, {"tanh", Activation::tanh}};
  std::string names;
  for (const auto& a : known) {
    if (py::isinstance<py::str>(name) && name.cast<std::string>() == a.name) return a.value;
    names += std::string(names.empty() ? "" : ", ") + a.name;
  }
  fail_value(std::string(op) + ": activation " + py::repr(name).cast<std::string>() + " is not one of " + names);
}

// c (..., m, n) = a (..., m, k) b (..., k, n) by NumPy's rules, as a batch of products. Strides in elements.
struct MatmulPlan {
  struct Dim {
    int64_t size, a, b, c;
  };
  int64_t m, n, k;
  int64_t a_m, a_k, b_k, b_n;
  std::vector<int64_t> shape;  // of the result; a 1-D operand has m or n of 1, which it lacks
  std::vector<Dim> batch;      // innermost first

  // Joins dimensions of the batch where a, b and c allow; those that share b become more rows of one product.
  void merge() {
    std::vector<Dim> merged;
    int64_t c_step = m * n;
    for (Dim d : batch) {
      d.c = c_step;
      c_step *= d.size;
      if (d.size == 1) continue;
      if (merged.empty() && d.b == 0 && (m == 1 || d.a == a_m * m)) {
        if (m == 1) a_m = d.a;
        m *= d.size;
        continue;
      }
      if (!merged.empty() && d.a == merged.back().a * merged.back().size && d.b == merged.back().b * merged.back().size)
        merged.back().size *= d.size;
      else
        merged.push_back(d);
    }
    if (merged.size() > kMaxRank)
      fail_value("matmul: more than " + std::to_string(kMaxRank) + " batch dimensions that cannot be merged");
    batch = merged;
  }
};

inline MatmulPlan plan_matmul(const View& a, const View& b) {
  if (a.rank() == 0) fail_value("matmul: a must have at least 1 dimension");
  if (b.rank() == 0) fail_value("matmul: b must have at least 1 dimension");
  // As (..., m, k) and (..., k, n); a 1-D operand has m or n of 1, which the result lacks.
  std::vector<int64_t> a_shape = a.shape, b_shape = b.shape, a_strides = a.strides, b_strides = b.strides;
  if (a.rank() == 1) {
    a_shape.insert(a_shape.begin(), 1);
    a_strides.insert(a_strides.begin(), 0);
  }
  if (b.rank() == 1) {
    b_shape.push_back(1);
    b_strides.push_back(1);
  }
  const size_t a_rank = a_shape.size(), b_rank = b_shape.size();
  if (a_shape[a_rank - 1] != b_shape[b_rank - 2])
    fail_value("matmul: a has shape " + shape_text(a.shape) + " and b " + shape_text(b.shape) + ": inner dimensions " +
               std::to_string(a_shape[a_rank - 1]) + " and " + std::to_string(b_shape[b_rank - 2]) + " differ");
  MatmulPlan g{};
  check_length("matmul", "the inner dimension", a_shape[a_rank - 1]);
  g.m = a_shape[a_rank - 2];
  g.k = a_shape[a_rank - 1];
  g.n = b_shape[b_rank - 1];

  const size_t dims = std::max(a_rank, b_rank) - 2;
  for (size_t d = 0; d < dims; ++d) {
    const bool in_a = d + 2 < a_rank, in_b = d + 2 < b_rank;
    const int64_t size_a = in_a ? a_shape[a_rank - 3 - d] : 1, size_b = in_b ? b_shape[b_rank - 3 - d] : 1;
    if (size_a != size_b && size_a != 1 && size_b != 1)
      fail_value("matmul: batch dimensions of a " + shape_text(a.shape) + " and b " + shape_text(b.shape) + " do not broadcast");
    g.batch.push_back({size_a == 1 ? size_b : size_a, size_a == 1 ? 0 : a_strides[a_rank - 3 - d],
                       size_b == 1 ? 0 : b_strides[b_rank - 3 - d], 0});
    g.shape.insert(g.shape.begin(), g.batch.back().size);
  }
  if (a.rank() > 1) g.shape.push_back(g.m);
  if (b.rank() > 1) g.shape.push_back(g.n);
  g.a_m = a_strides[a_rank - 2];
  g.a_k = g.k > 1 ? a_strides[a_rank - 1] : 1;
  g.b_k = b_strides[b_rank - 2];
  g.b_n = g.n > 1 ? b_strides[b_rank - 1] : 1;
  return g;
}

// linear's operands, a raw weight w or none beside a packed one of (n, k): dtypes of parameters, shapes. Returns the result's
// shape, which gate and residual must broadcast to. Dtypes of x, gate and residual are checked already.
inline std::vector<int64_t> check_linear(const View& x, const View& w, int64_t n, int64_t k, const View& bias) {
  check_parameter_dtype(x, w);
  check_parameter_dtype(x, bias);
  if (x.rank() == 0) fail_value("linear: x must have at least 1 dimension");
  if (w && w.rank() != 2) fail_value("linear: weight must be (out, in), got " + shape_text(w.shape));
  if (x.shape.back() != k)
    fail_value("linear: x has " + std::to_string(x.shape.back()) + " features, weight " + shape_text({n, k}) + " takes " +
               std::to_string(k));
  if (bias && bias.shape != std::vector<int64_t>{n})
    fail_value("linear: bias must be " + shape_text({n}) + ", got " + shape_text(bias.shape));
  check_length("linear", "weight's in", k);
  check_length("linear", "weight's out", n);
  std::vector<int64_t> shape = x.shape;
  shape.back() = n;
  checked_size("linear", shape);
  return shape;
}

}  // namespace qkv
