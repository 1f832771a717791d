// A small thread pool. Work is cut into numbered tasks that don't depend on the number of threads, so that results that
// depend only on task numbers are the same for every thread count.
#pragma once

#include <cstdint>
#include <functional>

namespace ngp {

// Number of threads: PYNGP_NUM_THREADS if set (an error if it is not a positive integer), else the cores that this
// process may use.
int num_threads();

// Calls body(task, worker) for each task in [0, n_tasks), worker in [0, num_threads()). Returns when all are done.
// The first exception that a body throws is rethrown here. Calls from inside a body run inline, and a pool is
// recreated in a forked child.
void parallel_for(int64_t n_tasks, const std::function<void(int64_t task, int worker)>& body);

// The same over chunks of a range: body(begin, end, worker).
void parallel_for_range(int64_t n, int64_t chunk,
                        const std::function<void(int64_t begin, int64_t end, int worker)>& body);

} // namespace ngp
