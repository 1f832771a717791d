#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <ngp/core/check.h>
#include <ngp/core/parallel.h>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

namespace ngp {

namespace {

thread_local int current_worker = -1; // -1: not inside a task

int usable_cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

int read_num_threads() {
    const char* text = std::getenv("PYNGP_NUM_THREADS");
    if (!text || !*text) return usable_cores();
    char* end = nullptr;
    long n = std::strtol(text, &end, 10);
    if (*end || n < 1 || n > 1024) fail("PYNGP_NUM_THREADS is '", text, "'; it must be a whole number from 1 to 1024");
    return int(n);
}

class Pool {
  public:
    explicit Pool(int n_threads) : owner_(getpid()) {
        try {
            for (int worker = 1; worker < n_threads; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
        } catch (const std::system_error&) {
            // The system has no more threads: results don't depend on their number.
        }
    }
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto& t : threads_) t.join();
    }
    pid_t owner() const { return owner_; }

    void run(int64_t n_tasks, const std::function<void(int64_t, int)>& body) {
        std::lock_guard one_caller(callers_);
        {
            std::lock_guard lock(mutex_);
            body_ = &body;
            n_tasks_ = n_tasks;
            next_ = 0;
            error_ = nullptr;
            busy_ = int(threads_.size());
            ++generation_;
        }
        wake_.notify_all();
        work(0);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
        body_ = nullptr;
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

  private:
    void serve(int worker) {
        uint64_t seen = 0;
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
                if (stop_) return;
                seen = generation_;
            }
            work(worker);
            std::lock_guard lock(mutex_);
            if (--busy_ == 0) done_.notify_one();
        }
    }
    void work(int worker) {
        current_worker = worker;
        for (int64_t task; (task = next_.fetch_add(1)) < n_tasks_;) {
            try {
                (*body_)(task, worker);
            } catch (...) {
                std::lock_guard lock(mutex_);
                if (!error_) error_ = std::current_exception();
                next_ = n_tasks_;
            }
        }
        current_worker = -1;
    }

    const pid_t owner_;
    std::vector<std::thread> threads_;
    std::mutex callers_, mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(int64_t, int)>* body_ = nullptr;
    int64_t n_tasks_ = 0;
    std::atomic<int64_t> next_{0};
    uint64_t generation_ = 0;
    int busy_ = 0;
    bool stop_ = false;
    std::exception_ptr error_;
};

Pool& pool() {
    static std::mutex mutex;
    // Not destroyed at exit: worker threads may already be gone, or belong to the parent of a forked process.
    static Pool* instance = nullptr;
    std::lock_guard lock(mutex);
    if (!instance || instance->owner() != getpid()) instance = new Pool(num_threads());
    return *instance;
}

} // namespace

int num_threads() {
    static const int n = read_num_threads();
    return n;
}

void parallel_for(int64_t n_tasks, const std::function<void(int64_t, int)>& body) {
    if (n_tasks <= 0) return;
    if (n_tasks == 1 || current_worker >= 0 || num_threads() == 1) {
        for (int64_t task = 0; task < n_tasks; ++task) body(task, std::max(0, current_worker));
        return;
    }
    pool().run(n_tasks, body);
}

void parallel_for_range(int64_t n, int64_t chunk, const std::function<void(int64_t, int64_t, int)>& body) {
    const int64_t n_tasks = (n + chunk - 1) / chunk;
    parallel_for(n_tasks,
                 [&](int64_t task, int worker) { body(task * chunk, std::min(n, (task + 1) * chunk), worker); });
}

} // namespace ngp
