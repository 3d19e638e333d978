// pack_weight, and packed weights as arrays: dequantised, or in the canonical form that files hold.
#include "bind/packed_weight.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "bind/bind.h"
#include "bind/recording.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace qkv {
namespace {

constexpr const char* kTypeNames[] = {"float32", "bfloat16", "int8", "int4"};
const char* const kOp = "pack_weight";

WeightType type_of(const std::string& name) {
  for (int i = 0; i < 4; ++i)
    if (name == kTypeNames[i]) return static_cast<WeightType>(i);
  fail_value("pack_weight: dtype must be 'float32', 'bfloat16', 'int8' or 'int4', got '" + name + "'");
}

void check_group(const std::string& dtype, WeightType type, int64_t group) {
  const bool fits = type == WeightType::int8   ? group == 0 || group == 32
                    : type == WeightType::int4 ? group == 32 || group == 64 || group == 128
                                               : group == 0;
  if (!fits)
    fail_value("pack_weight: group_size of " + dtype + " is " +
               (type == WeightType::int8   ? "None (one scale a row) or 32"
                : type == WeightType::int4 ? "32, 64 or 128"
                                           : "None") +
               ", got " + std::to_string(group));
}

std::unique_ptr<PackedWeight> allocate(const std::string& dtype, int64_t group, int64_t n, int64_t k) {
  const WeightType type = type_of(dtype);
  check_group(dtype, type, group);
  if (n < 0 || k < 0) fail_value("PackedWeight: a weight of " + shape_text({n, k}) + " cannot be");
  check_length(kOp, "w's out", n);
  check_length(kOp, "w's in", k);
  if (type == WeightType::int8 && !group && k > kMostInt8)
    fail_value("pack_weight: int8 with one scale a row takes at most " + std::to_string(kMostInt8) + " features, got " +
               std::to_string(k) + "; use group_size=32");
  checked_size(kOp, {panels_of(n) * kPanel, k + 128});
  return std::make_unique<PackedWeight>(type, group, n, k);
}

std::unique_ptr<PackedWeight> pack(py::handle w_in, const std::string& dtype, int64_t group) {
  const Array w = read_array(kOp, "w", w_in);
  if (w.rank() != 2) fail_value("pack_weight: w must be (out, in), got " + shape_text(w.shape));
  if (w.is_double) fail_type("pack_weight: w is float64; convert it to float32 first");
  auto packed = allocate(dtype, group, w.shape[0], w.shape[1]);
  const PackedView& to = packed->view();
  int bad = 0;
  if (to.n > 0) {
    const UnlockedOnce unlocked;
    const int threads = num_threads();
    if (to.type == WeightType::f32) {
      kernels().pack_weight(
          {w.data, w.dtype, to.n, to.k, w.strides[0], w.strides[1], reinterpret_cast<float*>(to.panels), threads});
    } else {
      const Rows rows = rows_along(1, {&w})[0];
      const Scratch scratch(static_cast<size_t>(4 * to.k * threads));
      kernels().quantize({rows, to, scratch.as<float>(), &bad, threads});
    }
  }
  if (bad)
    fail_value("pack_weight: w holds values that " + dtype + " cannot store: NaN, infinities" +
               (group ? ", or numbers beyond float16's range of scales" : ""));
  return packed;
}

// ---- the canonical form: values (n, k) in the order of w, scale, offset

py::array dequantize(const PackedWeight& packed) {
  const PackedView& w = packed.view();
  py::array out = new_array("dequantize", float32_dtype(), {w.n, w.k});
  if (out.size() > 0) {
    float* to = static_cast<float*>(out.mutable_data());
    const UnlockedOnce unlocked;
    kernels().dequantize({w, nullptr, w.n, to, num_threads()});
  }
  return out;
}

py::dtype values_dtype(WeightType t) {
  return t == WeightType::f32    ? float32_dtype()
         : t == WeightType::bf16 ? py::dtype::of<uint16_t>()
         : t == WeightType::int8 ? py::dtype::of<int8_t>()
                                 : py::dtype::of<uint8_t>();
}
std::vector<int64_t> values_shape(const PackedView& w) { return {w.n, w.type == WeightType::int4 ? (w.k + 1) / 2 : w.k}; }

// Words of four bytes, as values have them and as panels do. int8 is moved by 128; int4 has neighbours in a byte of values, and
// k + 4 beside k in one of a panel.
template <WeightType kType>
uint32_t to_panel(uint32_t x) {
  if (kType == WeightType::int8) return x ^ 0x80808080u;
  if (kType != WeightType::int4) return x;
  const auto spread = [](uint32_t h) { return (h & 0xf) | (h & 0xf0) << 4 | (h & 0xf00) << 8 | (h & 0xf000) << 12; };
  return spread(x & 0xffff) | spread(x >> 16) << 4;
}
template <WeightType kType>
uint32_t from_panel(uint32_t x) {
  if (kType != WeightType::int4) return to_panel<kType>(x);
  const auto join = [](uint32_t b) { return (b & 0xf) | (b >> 4 & 0xf0) | (b >> 8 & 0xf00) | (b >> 12 & 0xf000); };
  return join(x & 0x0f0f0f0f) | join(x >> 4 & 0x0f0f0f0f) << 16;
}

// Bytes of a row of values.
int64_t row_bytes(const PackedView& w) {
  switch (w.type) {
    case WeightType::f32:
      return w.k * 4;
    case WeightType::bf16:
      return w.k * 2;
    case WeightType::int8:
      return w.k;
    case WeightType::int4:
      break;
  }
  return (w.k + 1) / 2;
}

// A constant size, which compilers copy in one instruction, but for the last word of a row: twice as fast.
inline void copy_word(void* to, const void* from, size_t bytes) {
  if (bytes == 4)
    std::memcpy(to, from, 4);
  else
    std::memcpy(to, from, bytes);
}

// Copies between the panels and rows of values; int4: two a byte, the first in the lower half. Panels go in parallel.
template <bool kToPanels, WeightType kType>
void move_panels(const PackedView& w, char* values) {
  struct Job {
    const PackedView& w;
    char* values;
    int64_t row;
  } job{w, values, row_bytes(w)};
  const auto body = [](void* context, int64_t begin, int64_t end, int) {
    const Job& j = *static_cast<const Job*>(context);
    for (int64_t panel = begin; panel < end; ++panel) {
      char* const at = j.w.panels + panel * panel_rows(j.w) * kPanelRowBytes;
      const int64_t first = panel * kPanel, columns = std::min<int64_t>(kPanel, j.w.n - first);
      for (int64_t word = 0; word * 4 < j.row; ++word) {
        const size_t bytes = static_cast<size_t>(std::min<int64_t>(4, j.row - word * 4));
        for (int64_t n = 0; n < columns; ++n) {
          char* const here = j.values + (first + n) * j.row + word * 4;
          char* const there = at + word * kPanelRowBytes + n * 4;
          uint32_t x = 0;
          if (kToPanels) {
            copy_word(&x, here, bytes);
            x = to_panel<kType>(x);
            std::memcpy(there, &x, 4);
          } else {
            std::memcpy(&x, there, 4);
            x = from_panel<kType>(x);
            copy_word(here, &x, bytes);
          }
        }
      }
    }
  };
  const int64_t grain = 1 + 65536 / (job.row * kPanel + 1);
  parallel_for(panels_of(w.n), grain, num_threads(), body, &job);
}
template <bool kToPanels>
void move_values(const PackedView& w, char* values) {
  switch (w.type) {
    case WeightType::f32:
      return move_panels<kToPanels, WeightType::f32>(w, values);
    case WeightType::bf16:
      return move_panels<kToPanels, WeightType::bf16>(w, values);
    case WeightType::int8:
      return move_panels<kToPanels, WeightType::int8>(w, values);
    case WeightType::int4:
      return move_panels<kToPanels, WeightType::int4>(w, values);
  }
}

// Copies between scales in panels, (panels, groups, 16), and rows of them, (n, groups).
template <bool kToPanels>
void move_scales(const PackedView& w, f16* panels, f16* rows) {
  const int64_t groups = groups_of(w);
  for (int64_t n = 0; n < w.n; ++n)
    for (int64_t g = 0; g < groups; ++g) {
      f16& there = panels[(n / kPanel * groups + g) * kPanel + n % kPanel];
      f16& here = rows[n * groups + g];
      (kToPanels ? there : here) = kToPanels ? here : there;
    }
}

py::dtype float16_dtype() { return py::dtype("float16"); }

py::tuple parts(const PackedWeight& packed) {
  const PackedView& w = packed.view();
  py::array values = new_array(kOp, values_dtype(w.type), values_shape(w));
  py::object scale = py::none(), offset = py::none();
  if (w.row_scale) {
    py::array made = new_array(kOp, float32_dtype(), {w.n});
    if (w.n > 0) std::memcpy(made.mutable_data(), w.row_scale, static_cast<size_t>(4 * w.n));
    scale = made;
  }
  for (const auto& [from, to] : {std::pair<f16*, py::object*>{w.scale, &scale}, {w.offset, &offset}})
    if (from) {
      py::array made = new_array(kOp, float16_dtype(), {w.n, groups_of(w)});
      move_scales<false>(w, from, static_cast<f16*>(made.mutable_data()));
      *to = made;
    }
  char* to = static_cast<char*>(values.mutable_data());
  {
    const UnlockedOnce unlocked;
    move_values<false>(w, to);
  }
  return py::make_tuple(packed.type_name(), w.group, w.k, values, scale, offset);
}

py::array checked(const char* name, py::handle object, const py::dtype& dtype, const std::vector<int64_t>& shape) {
  const std::string where = std::string("PackedWeight: ") + name;
  if (!py::isinstance<py::array>(object)) fail_type(where + " must be an array");
  const py::array array = py::reinterpret_borrow<py::array>(object);
  if (!array.dtype().equal(dtype))
    fail_type(where + " must be " + py::str(dtype).cast<std::string>() + ", got " + py::str(array.dtype()).cast<std::string>());
  if (std::vector<int64_t>(array.shape(), array.shape() + array.ndim()) != shape)
    fail_value(where + " must be " + shape_text(shape));
  return py::array::ensure(array, py::array::c_style);
}

std::unique_ptr<PackedWeight> from_parts(const std::string& dtype, int64_t group, int64_t k, py::handle values_in,
                                         py::handle scale_in, py::handle offset_in) {
  if (!py::isinstance<py::array>(values_in) || py::reinterpret_borrow<py::array>(values_in).ndim() != 2)
    fail_type("PackedWeight: values must be a 2-D array");
  PackedView shape{};  // nothing is allocated before all parts are seen to fit
  shape.type = type_of(dtype);
  shape.n = py::reinterpret_borrow<py::array>(values_in).shape(0);
  shape.k = k;
  shape.group = group;
  const bool scaled = shape.type == WeightType::int8 || shape.type == WeightType::int4, moved = shape.type == WeightType::int4;
  if (scale_in.is_none() == scaled || offset_in.is_none() == moved)
    fail_value("PackedWeight: " + dtype + " has " +
               (moved    ? "scale and offset"
                : scaled ? "scale and no offset"
                         : "no scale and no offset"));
  check_group(dtype, shape.type, group);
  const py::array values = checked("values", values_in, values_dtype(shape.type), values_shape(shape));
  auto packed = allocate(dtype, group, shape.n, k);
  const PackedView& w = packed->view();
  if (w.row_scale) {
    const py::array scale = checked("scale", scale_in, float32_dtype(), {w.n});
    if (w.n > 0) std::memcpy(w.row_scale, scale.data(), static_cast<size_t>(4 * w.n));
    const auto* q = static_cast<const int8_t*>(values.data());
    int8_t least = 0;
    {
      const UnlockedOnce unlocked;
      for (int64_t n = 0; n < w.n; ++n) {
        int32_t sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          sum += q[n * k + i];
          least = std::min(least, q[n * k + i]);
        }
        w.row_sum[n] = sum;
      }
    }
    if (least == -128) fail_value("PackedWeight: values of int8 with one scale a row are -127 to 127");
  }
  for (const auto& [to, from, name] :
       {std::tuple<f16*, py::handle, const char*>{w.scale, scale_in, "scale"}, {w.offset, offset_in, "offset"}})
    if (to) {
      const py::array array = checked(name, from, float16_dtype(), {w.n, groups_of(w)});
      move_scales<true>(w, to, static_cast<f16*>(const_cast<void*>(array.data())));
    }
  const UnlockedOnce unlocked;
  std::memset(w.panels, w.type == WeightType::int8 ? 128 : 0,
              static_cast<size_t>(panels_of(w.n) * panel_rows(w) * kPanelRowBytes));
  move_values<true>(w, static_cast<char*>(const_cast<void*>(values.data())));
  return packed;
}

}  // namespace

PackedWeight::PackedWeight(WeightType type, int64_t group, int64_t n, int64_t k) {
  PackedView& w = view_;
  w.type = type;
  w.n = n;
  w.k = k;
  w.group = group;
  const int64_t columns = panels_of(n) * kPanel, groups = groups_of(w);
  const bool by_row = type == WeightType::int8 && !group;
  const int64_t panels = panel_rows(w) * columns * 4, scales = 2 * columns * groups;
  bytes_ = panels + (by_row ? 8 * columns : scales * (type == WeightType::int4 ? 2 : 1));
  memory_ = static_cast<char*>(lasting_acquire(static_cast<size_t>(bytes_)));
  std::memset(memory_ + panels, 0, static_cast<size_t>(bytes_ - panels));  // columns beyond n have scales of zero
  w.panels = memory_;
  if (by_row) {
    w.row_scale = reinterpret_cast<float*>(memory_ + panels);
    w.row_sum = reinterpret_cast<int32_t*>(w.row_scale + columns);
  } else if (group) {
    w.scale = reinterpret_cast<f16*>(memory_ + panels);
    if (type == WeightType::int4) w.offset = w.scale + columns * groups;
  }
}

const char* PackedWeight::type_name() const { return kTypeNames[static_cast<int>(view_.type)]; }

const PackedView* packed_view(py::handle object) {
  return py::isinstance<PackedWeight>(object) ? &object.cast<const PackedWeight*>()->view() : nullptr;
}

void bind_packed_weight(py::module_& m) {
  py::class_<PackedWeight>(m, "PackedWeight",
                           "A weight matrix (out, in) in the layout that qkv.linear reads; made by qkv.pack_weight.")
      .def_property_readonly(
          "shape", [](const PackedWeight& w) { return py::make_tuple(w.view().n, w.view().k); }, "(out, in)")
      .def_property_readonly("dtype", &PackedWeight::type_name, "Name of the stored type.")
      .def_property_readonly(
          "group_size",
          [](const PackedWeight& w) -> py::object { return w.view().group ? py::int_(w.view().group) : py::object(py::none()); },
          "How many neighbours of a row share a scale; None: all of them, or there are no scales.")
      .def_property_readonly("nbytes", &PackedWeight::nbytes, "Bytes held, padding included.")
      .def("dequantize", dequantize, "The matrix as a new float32 array (out, in).")
      .def("parts", parts,
           "(dtype, group_size or 0, in, values, scale, offset): the canonical form that files hold. values (out, in): float32, "
           "the bits of bfloat16 as uint16, int8, or uint8 (out, (in + 1) // 2) with two int4 a byte, the first in the lower "
           "half. "
           "scale: float32 (out,) or float16 (out, groups); offset: float16 (out, groups); None where the dtype has none.")
      .def_static("from_parts", from_parts, py::arg("dtype"), py::arg("group_size"), py::arg("width"), py::arg("values"),
                  py::arg("scale"), py::arg("offset"), "The weight that `parts` describes, to the bit.")
      .def("__repr__",
           [](const PackedWeight& w) {
             const PackedView& v = w.view();
             return "PackedWeight(shape=" + shape_text({v.n, v.k}) + ", dtype='" + w.type_name() + "'" +
                    (v.group ? ", group_size=" + std::to_string(v.group) : "") + ")";
           })
      .def(py::pickle([](const PackedWeight& w) { return parts(w); },
                      [](const py::tuple& state) {
                        if (state.size() != 6) fail_value("PackedWeight: a pickled state has six parts");
                        return from_parts(state[0].cast<std::string>(), state[1].cast<int64_t>(), state[2].cast<int64_t>(),
                                          state[3], state[4], state[5]);
                      }));
  m.def("pack_weight", pack, py::arg("w"), py::arg("dtype"), py::arg("group_size"));
}

}  // namespace qkv
