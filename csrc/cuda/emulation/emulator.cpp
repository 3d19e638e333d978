#include "cuda/emulation/emulator.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "cuda/emulation/block.h"
#include "cuda/emulation/counters.h"

namespace qkv::emulation {

std::recursive_mutex& runtime_mutex() {
  static std::recursive_mutex* it = new std::recursive_mutex;  // the process may end while a thread holds it
  return *it;
}

namespace {

Config wanted;
Report collected;

bool read_environment() {
  if (const char* text = std::getenv("QKV_EMULATOR")) parse(text, wanted);
  config = wanted;
  return true;
}

void ensure_configured() {
  static const bool once = read_environment();
  (void)once;
}

int64_t number(const std::string& name, const std::string& value) {
  char* end = nullptr;
  const long long n = std::strtoll(value.c_str(), &end, 10);
  if (value.empty() || *end) throw std::invalid_argument("QKV_EMULATOR: " + name + "=" + value + " is not a number");
  return n;
}

template <class T>
T choice(const std::string& name, const std::string& value, const std::vector<std::pair<std::string, T>>& choices) {
  for (const auto& [text, meaning] : choices)
    if (value == text) return meaning;
  throw std::invalid_argument("QKV_EMULATOR: " + name + "=" + value + " is not known");
}

int64_t& count_of(Report& r, FaultKind kind) {
  switch (kind) {
    case FaultKind::race:
      return r.races;
    case FaultKind::uninitialised:
      return r.uninitialised;
    case FaultKind::out_of_bounds:
      return r.out_of_bounds;
    case FaultKind::misaligned:
      return r.misaligned;
    case FaultKind::deadlock:
      return r.deadlocks;
    case FaultKind::divergent:
      return r.divergent;
    case FaultKind::missing_fence:
      return r.missing_fences;
    case FaultKind::unfinished_copy:
      return r.unfinished_copies;
    default:
      return r.other;
  }
}

}  // namespace

void parse(const std::string& text, Config& c) {
  for (size_t at = 0; at < text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string item = text.substr(at, comma - at);
    at = comma + 1;
    if (item.empty()) continue;
    const size_t equals = item.find('=');
    const std::string name = item.substr(0, equals), value = equals == std::string::npos ? "1" : item.substr(equals + 1);
    if (name == "seed")
      c.seed = static_cast<uint64_t>(number(name, value));
    else if (name == "check")
      c.check = number(name, value) != 0;
    else if (name == "count")
      c.count = number(name, value) != 0;
    else if (name == "cc")
      c.compute_capability = static_cast<int>(number(name, value));
    else if (name == "sms")
      c.multiprocessors = static_cast<int>(number(name, value));
    else if (name == "memory")
      c.memory = static_cast<size_t>(number(name, value));
    else if (name == "schedule")
      c.schedule = choice<Schedule>(
          name, value, {{"random", Schedule::random}, {"in_order", Schedule::in_order}, {"reverse", Schedule::reverse}});
    else if (name == "async")
      c.async = choice<AsyncMode>(name, value,
                                  {{"random", AsyncMode::random}, {"late", AsyncMode::late}, {"at_issue", AsyncMode::at_issue}});
    else if (name == "streams")
      c.late_streams = choice<bool>(name, value, {{"at_issue", false}, {"late", true}});
    else if (name == "leave_out")
      c.leave_out = value;
    else
      throw std::invalid_argument("QKV_EMULATOR: what is '" + name + "'?");
  }
}

void configure(const Config& c) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  ensure_configured();
  wanted = c;
  config = c;
}

Config configuration() {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  ensure_configured();
  return wanted;
}

Report take_report() {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  Report r = std::move(collected);
  r.left_out = times_left_out;
  times_left_out = 0;
  collected = Report();
  return r;
}

bool run_launch(const Launch& launch, std::string& fault_text) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  // Before anything here is destroyed, a daemon thread finishes its launch, and later ones never begin.
  [[maybe_unused]] static const int at_exit = std::atexit([] { runtime_mutex().lock(); });
  static uint64_t serial = 0;
  ensure_configured();
  config = wanted;
  Launch l = launch;
  l.serial = ++serial;
  ++collected.launches;
  counted = nullptr;
  if (config.count) {
    counted = &collected.kernels[l.kernel->name];
    ++counted->launches;
    counted->dependent += l.dependent;
    counted->blocks += int64_t{l.grid.x} * l.grid.y * l.grid.z;
    counted->threads = l.threads;
    counted->dynamic_shared = l.dynamic_shared;
  }
  try {
    run_grid(l);
  } catch (const Fault& fault) {
    ++collected.failed;
    ++count_of(collected, fault.kind);
    if (collected.first.empty()) collected.first = fault.text;
    fault_text = fault.text;
    return false;
  }
  return true;
}

}  // namespace qkv::emulation
