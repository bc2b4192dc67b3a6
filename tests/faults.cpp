// A library that is preloaded into the server (LD_PRELOAD), where it fails system calls on order: see faults.hpp. The
// orders are in the file that CHATROOM_FAULTS names.
#ifdef __linux__
#include "faults.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <ctime>

using namespace faults;

namespace {

// Returns the function that this library stands before.
template <typename Function>
Function* real(Function* /*same*/, const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

#define REAL(function) static const auto real_##function = real(&::function, #function)

// Returns what the test shares, mapped at the first call; null where no test does.
Shared* shared() {
    static Shared* const mapped = [] {
        const char* path = std::getenv("CHATROOM_FAULTS");
        if (path == nullptr) return static_cast<Shared*>(nullptr);
        using Open = int(const char*, int, ...);
        const int file = reinterpret_cast<Open*>(dlsym(RTLD_NEXT, "open"))(path, O_RDWR | O_CLOEXEC);
        if (file < 0) std::abort();
        void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (memory == MAP_FAILED) std::abort();
        return static_cast<Shared*>(memory);
    }();
    return mapped;
}

// Returns the error that a call is to fail with, or 0, and sets errno to it.
int ordered(Call call) {
    if (shared() == nullptr) return 0;
    Fault& fault = shared()->faults[call];
    if (fault.error == 0 || fault.skip.fetch_sub(1) > 0) return 0;
    if (fault.times.fetch_sub(1) <= 0) {
        fault.times = 0;
        return 0;
    }
    if (fault.times % fault.every != 0) return 0;
    ++fault.failed;
    if (fault.error > 0) errno = fault.error;
    return fault.error;
}

void note(char event) {
    if (shared() == nullptr) return;
    const unsigned at = shared()->event_count++;
    if (at < shared()->events.size()) shared()->events[at] = event;
}

thread_local time_t ahead = 0;  // by how many seconds this thread's clock is

mode_t kind_of(int fd) {
    struct stat status {};
    return fstat(fd, &status) == 0 ? status.st_mode & S_IFMT : 0;
}

}  // namespace

// Defines what the server calls instead of a function of the system.
#define INSTEAD(result, function, parameters)                      \
    extern "C" result my_##function parameters __asm__(#function); \
    result my_##function parameters

INSTEAD(int, accept, (int socket, sockaddr* address, socklen_t* length)) {
    REAL(accept);
    return ordered(accept_call) > 0 ? -1 : real_accept(socket, address, length);
}

INSTEAD(ssize_t, recv, (int socket, void* bytes, size_t count, int flags)) {
    REAL(recv);
    const int fault = ordered(recv_call);
    if (fault > 0) return -1;
    const ssize_t result = real_recv(socket, bytes, fault < 0 ? std::min<size_t>(count, 1) : count, flags);
    if (shared() != nullptr) ahead += shared()->recv_seconds.exchange(0);
    return result;
}

INSTEAD(int, clock_gettime, (clockid_t clock, timespec* time)) {
    REAL(clock_gettime);
    const int result = real_clock_gettime(clock, time);
    if (clock == CLOCK_MONOTONIC) time->tv_sec += ahead;
    return result;
}

INSTEAD(ssize_t, send, (int socket, const void* bytes, size_t count, int flags)) {
    REAL(send);
    const int fault = ordered(send_call);
    return fault > 0 ? -1 : real_send(socket, bytes, fault < 0 ? std::min<size_t>(count, 1) : count, flags);
}

INSTEAD(int, poll, (pollfd * polled, nfds_t count, int timeout)) {
    REAL(poll);
    return ordered(poll_call) > 0 ? -1 : real_poll(polled, count, timeout);
}

INSTEAD(ssize_t, read, (int fd, void* bytes, size_t count)) {
    REAL(read);
    const int fault = ordered(read_call);
    return fault > 0 ? -1 : real_read(fd, bytes, fault < 0 ? std::min<size_t>(count, 1) : count);
}

INSTEAD(ssize_t, write, (int fd, const void* bytes, size_t count)) {
    REAL(write);
    const bool file = kind_of(fd) == S_IFREG;
    if (kind_of(fd) == S_IFIFO && fd > STDERR_FILENO) return real_write(fd, bytes, count);  // a wake-up
    const int fault = ordered(file ? write_file_call : write_log_call);
    if (fault > 0) return -1;
    if (file) note('w');
    return real_write(fd, bytes, fault < 0 ? std::min<size_t>(count, 1) : count);
}

INSTEAD(int, open, (const char* path, int flags, ...)) {
    using Open = int (*)(const char*, int, ...);
    static const Open real_open = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "open"));
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    struct stat status {};
    const bool folder = stat(path, &status) == 0 && S_ISDIR(status.st_mode);
    if (ordered(folder ? open_folder_call : open_call) > 0) return -1;
    return real_open(path, flags, mode);
}

INSTEAD(int, fsync, (int fd)) {
    REAL(fsync);
    const bool folder = kind_of(fd) == S_IFDIR;
    if (ordered(folder ? fsync_folder_call : fsync_call) > 0) return -1;
    for (; shared() != nullptr && shared()->hold_fsync; usleep(1000)) shared()->fsync_is_held = true;
    note(folder ? 'd' : 'f');
    return real_fsync(fd);
}

INSTEAD(int, fdatasync, (int fd)) { return fsync(fd); }

INSTEAD(int, rename, (const char* from, const char* to)) {
    REAL(rename);
    if (ordered(rename_call) > 0) return -1;
    note('r');
    return real_rename(from, to);
}

INSTEAD(int, pthread_create,
        (pthread_t * thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument)) {
    REAL(pthread_create);
    const int fault = ordered(thread_call);
    return fault > 0 ? fault : real_pthread_create(thread, attributes, run, argument);
}

#endif
