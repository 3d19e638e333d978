// paged_write and copy_blocks on a GPU's arrays.
#include "bind/device_cache.h"
#include "bind/device_ints.h"
#include "bind/gil.h"
#include "bind/write_checks.h"

namespace qkv {
namespace {

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

DeviceArray upload_ints(const std::vector<int64_t>& ints, cuda::Stream stream) {
  return upload(py::array_t<int64_t>(static_cast<py::ssize_t>(ints.size()), ints.data()), stream);
}

void paged_write(py::handle k_in, py::handle v_in, py::handle k_cache_in, py::handle v_cache_in, py::handle slots_in,
                 py::handle k_scale_in, py::handle v_scale_in, std::uintptr_t stream) {
  const char* op = "paged_write";
  DeviceView k = read_device_array(op, "k", k_in), v = read_device_array(op, "v", v_in);
  const DeviceView k_cache = read_device_cache(op, "k_cache", k_cache_in), v_cache = read_device_cache(op, "v_cache", v_cache_in);
  check_dtypes(op, {&k, &v});
  cuda::PagedWriteArgs a{};
  check_paged_write(k, v, k_cache, v_cache, &a);
  const DeviceView k_scale = read_device_scale(op, "k_scale", k_scale_in, k_cache),
                   v_scale = read_device_scale(op, "v_scale", v_scale_in, v_cache);
  a.blocks = k_cache.shape[0];
  const int64_t places = checked_size(op, {a.blocks, a.block_size});
  DeviceCall call(op, stream_of(stream), k_cache.array);
  DeviceInts slots;
  if (py::isinstance<DeviceArray>(slots_in)) {
    slots = read_device_ints(&call, "slots", slots_in);
    check_slots_shape(slots.shape, a.tokens);
  } else {
    const auto ints = read_int_array(op, "slots", slots_in);
    check_slots_shape(std::vector<int64_t>(ints.shape(), ints.shape() + ints.ndim()), a.tokens);
    slots.host.assign(ints.data(), ints.data() + ints.size());
    check_unsigned_slots(slots.host, py::reinterpret_borrow<py::array>(slots_in).dtype().kind());
    check_slots(slots.host, places);
    a.distinct = true;
  }
  if (k.size() + v.size() == 0) return;
  if (a.distinct) {
    drop_overwritten(&slots.host);
    slots.array = upload_ints(slots.host, call.stream());
    slots.ints = {slots.array.data, true};
  }
  for (const DeviceView* x : std::initializer_list<const DeviceView*>{&k, &v, &k_cache, &v_cache, &k_scale, &v_scale})
    call.reads(*x);
  // What is stored must not change under the reader's eyes.
  for (DeviceView* x : {&k, &v})
    for (const DeviceView* y : {&k_cache, &v_cache, &k_scale, &v_scale})
      if (*y && overlap(*x, *y)) {
        *x = call.compact(*x);
        break;
      }
  for (const DeviceView* x : {&k_cache, &v_cache, &k_scale, &v_scale})
    if (*x) call.writes(x->array);
  const auto rows = [](const DeviceView& x) { return Strided4{x.data, x.dtype, 0, x.strides[1], x.strides[0], x.strides[2]}; };
  const auto cache = [](const DeviceView& x) {
    return Strided4{x.data, x.dtype, x.strides[0], x.strides[2], x.strides[1], x.rank() == 4 ? x.strides[3] : 0};
  };
  a.slots = slots.ints;
  a.k = rows(k);
  a.v = rows(v);
  a.k_cache = cache(k_cache);
  a.v_cache = cache(v_cache);
  a.stored = stored_of(k_cache);
  if (k_scale) a.k_scale = cache(k_scale);
  if (v_scale) a.v_scale = cache(v_scale);
  a.workspace = call.scratch(cuda::paged_write_workspace(a));
  const Unlocked unlocked;
  cuda::paged_write(a, call.stream());
}

// The first `filled` places of blocks from[i] to blocks to[i], all different, in arrays (blocks, block_size, ...) of one cache.
void copy_blocks(const py::list& arrays, py::handle from_in, py::handle to_in, int64_t filled, std::uintptr_t stream) {
  const char* op = "copy_blocks";
  const auto from_ints = read_int_array(op, "from", from_in), to_ints = read_int_array(op, "to", to_in);
  const auto shape_of = [](const py::array& x) { return std::vector<int64_t>(x.shape(), x.shape() + x.ndim()); };
  check_copied_shapes(shape_of(from_ints), shape_of(to_ints));
  const std::vector<int64_t> from(from_ints.data(), from_ints.data() + from_ints.size()),
      to(to_ints.data(), to_ints.data() + to_ints.size());
  std::vector<DeviceArray> all;
  for (const py::handle item : arrays) {
    if (!py::isinstance<DeviceArray>(item)) fail_type("copy_blocks: arrays must hold arrays");
    all.push_back(item.cast<const DeviceArray&>());
    check_copied(all.back().shape, all.back().contiguous(), filled, from, to);
  }
  if (all.empty() || from.empty()) return;
  DeviceCall call(op, stream_of(stream), all[0]);
  std::vector<int64_t> numbers[3];  // addresses, bytes of a block, bytes that are copied
  for (const DeviceArray& x : all) {
    const int64_t bytes = x.shape[0] ? x.size() * x.item() / x.shape[0] : 0;
    numbers[0].push_back(reinterpret_cast<int64_t>(x.data));
    numbers[1].push_back(bytes);
    numbers[2].push_back(x.shape[1] ? bytes / x.shape[1] * filled : 0);
    call.writes(x);
  }
  std::vector<int64_t> sent;
  for (const std::vector<int64_t>* part :
       std::initializer_list<const std::vector<int64_t>*>{&numbers[0], &numbers[1], &numbers[2], &from, &to})
    sent.insert(sent.end(), part->begin(), part->end());
  const DeviceArray there = upload_ints(sent, call.stream());
  const auto count = static_cast<int64_t>(all.size()), blocks = static_cast<int64_t>(from.size());
  const auto* const data = reinterpret_cast<const int64_t*>(there.data);
  const Unlocked unlocked;
  cuda::copy_blocks({reinterpret_cast<void* const*>(data), data + count, data + 2 * count, count, data + 3 * count,
                     data + 3 * count + blocks, blocks},
                    call.stream());
}

}  // namespace

void bind_cuda_cache(py::module_& m) {
  m.def("paged_write", paged_write, py::arg("k"), py::arg("v"), py::arg("k_cache"), py::arg("v_cache"), py::arg("slots"),
        py::arg("k_scale"), py::arg("v_scale"), py::arg("stream"));
  m.def("copy_blocks", copy_blocks, py::arg("arrays"), py::arg("from_"), py::arg("to"), py::arg("filled"), py::arg("stream"));
}

}  // namespace qkv
