// How many threads this process should run. A container with a quota of one core and 64 visible ones must not start 64
// threads: the quota is then used up in 1/64 of each period and every thread stalls for the rest of it.
#include "core/cpu_count.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#include <string>
#include <thread>

namespace qkv {
namespace {

// C's files and conversions: C++ streams mean a copy of libstdc++'s in modules built by some distributions' compilers, which then
// crashes among others of it.
std::string read_line(const std::string& path) {
  std::string line;
  if (FILE* file = fopen(path.c_str(), "re")) {
    char buffer[256];
    if (fgets(buffer, sizeof buffer, file)) line = buffer;
    fclose(file);
  }
  return line;
}

// Quota of one group in CPUs, 0 if unlimited or unreadable. v2: "max 100000" or "150000 100000" in cpu.max.
double quota_v2(const std::string& dir) {
  double quota = 0, period = 0;
  const bool limited = sscanf(read_line(dir + "/cpu.max").c_str(), "%lf %lf", &quota, &period) == 2;
  return limited && quota > 0 && period > 0 ? quota / period : 0;
}

double quota_v1(const std::string& dir) {
  const double quota = atof(read_line(dir + "/cpu.cfs_quota_us").c_str());
  const double period = atof(read_line(dir + "/cpu.cfs_period_us").c_str());
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The tightest quota of `path` under `mount` and of every group above it. Inside a container the path may name groups
// that are not mounted; those read as unlimited and the mount's root still counts.
double tightest(const std::string& mount, std::string path, double (*quota)(const std::string&)) {
  double least = 0;
  for (;;) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    const double q = quota(mount + path);
    if (q > 0 && (least == 0 || q < least)) least = q;
    if (path.empty()) return least;
    path.erase(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

}  // namespace

double cgroup_cpus(const char* root) {
  const std::string base(root);
  double least = 0;
  const auto take = [&least](double q) {
    if (q > 0 && (least == 0 || q < least)) least = q;
  };
  // Lines are "id:controllers:path"; v2 is "0::path".
  FILE* const groups = fopen((base + "/proc/self/cgroup").c_str(), "re");
  if (!groups) return 0;
  char* text = nullptr;
  size_t capacity = 0;
  for (ssize_t length; (length = getline(&text, &capacity, groups)) > 0;) {
    std::string line(text, static_cast<size_t>(length));
    if (line.back() == '\n') line.pop_back();
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) {
      take(tightest(base + "/sys/fs/cgroup", path, quota_v2));
      take(tightest(base + "/sys/fs/cgroup/unified", path, quota_v2));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      take(tightest(base + "/sys/fs/cgroup/" + controllers, path, quota_v1));
      if (controllers != "cpu") take(tightest(base + "/sys/fs/cgroup/cpu", path, quota_v1));
    }
  }
  free(text);
  fclose(groups);
  return least;
}

int affinity_cpus() {
#if defined(__linux__)
  // A mask larger than cpu_set_t's 1024 CPUs needs a larger set: grow until the kernel accepts it.
  for (int capacity = 1024; capacity <= 1 << 18; capacity *= 4) {
    cpu_set_t* set = CPU_ALLOC(capacity);
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(capacity);
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
#endif
  const unsigned hardware = std::thread::hardware_concurrency();
  return hardware > 0 ? static_cast<int>(hardware) : 1;
}

int usable_cpus() {
  const int n = affinity_cpus();
  const double quota = cgroup_cpus("");
  // Rounded down: one thread too many is throttled along with all the others.
  if (quota > 0 && quota < n) return quota < 1 ? 1 : static_cast<int>(quota);
  return n;
}

}  // namespace qkv
