// How many threads this process should run: affinity mask and cgroup quota.
#pragma once

namespace qkv {

// CPUs in the affinity mask, capped by the cgroup CPU quota; at least 1.
int usable_cpus();

// The cgroup v1 or v2 CPU quota of this process in CPUs (the tightest of its group and all groups above); 0 if there is none.
// `root` stands before /proc and /sys, so that tests can lay out a tree of their own.
double cgroup_cpus(const char* root);

// Logical CPUs in the affinity mask.
int affinity_cpus();

}  // namespace qkv
