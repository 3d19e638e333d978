// What ops over rows check whatever their arrays' memory is.
#pragma once
#include <string>

#include "bind/view.h"

namespace qkv {

// Of layer_norm and rms_norm (which has no bias); absent arrays are passed over. Dtypes of x and residual are checked already.
inline void check_norm(const char* op, const View& x, const View& weight, const View& bias, const View& residual, double eps) {
  check_parameter_dtype(x, weight);
  check_parameter_dtype(x, bias);
  if (x.rank() == 0) fail_value(x.where + " must have at least 1 dimension");
  for (const View* p : {&weight, &bias})
    if (*p && p->shape != std::vector<int64_t>{x.shape.back()})
      fail_value(p->where + " must be " + shape_text({x.shape.back()}) + ", got " + shape_text(p->shape));
  if (residual && residual.shape != x.shape)
    fail_value(residual.where + " must have x's shape " + shape_text(x.shape) + ", got " + shape_text(residual.shape));
  if (!(eps >= 0)) fail_value(std::string(op) + ": eps must not be negative, got " + std::to_string(eps));
}

// Of top_k, whose x is (rows, n).
inline void check_top_k(const View& x, int64_t k) {
  if (k < 1 || k > x.shape[1])
    fail_value("top_k: k must lie in 1 to " + std::to_string(x.shape[1]) + ", got " + std::to_string(k));
}

// An eps below the smallest float still keeps a row of zeros from dividing by zero.
inline float smallest_eps(double eps) { return eps > 0 && static_cast<float>(eps) == 0 ? 1e-45f : static_cast<float>(eps); }

}  // namespace qkv
