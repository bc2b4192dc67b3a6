// Faults on order: what a test and the library that it preloads into the server share, a file that both map.
//
// A test arms a call: after `skip` more of them have passed, `times` of them fail with `error`. Each call counts what
// it did. See faults.cpp for how, and faults_test.cpp for what for.
#pragma once

#include <array>
#include <atomic>
#include <climits>

namespace faults {

enum Call {
    accept_call,
    recv_call,
    send_call,
    poll_call,
    read_call,
    open_call,         // of a file
    open_folder_call,  // of a directory
    write_file_call,   // to a file
    write_log_call,    // to what is none: standard output
    fsync_call,
    fsync_folder_call,
    rename_call,
    thread_call,  // pthread_create()
    call_count
};

constexpr int short_count = -1;  // for `error`: takes or brings one byte alone

struct Fault {
    std::atomic<int> error = 0;  // errno; 0 is not armed
    std::atomic<int> skip = 0;
    std::atomic<int> times = 0;
    std::atomic<int> every = 1;  // 2: only every other call fails
    std::atomic<int> failed = 0;
};

struct Shared {
    std::array<Fault, call_count> faults;
    // What was done to files, in order: w write, f fsync, r rename, d fsync of a directory.
    std::array<std::atomic<char>, 4096> events;
    std::atomic<unsigned> event_count = 0;
    std::atomic<bool> hold_fsync = false, fsync_is_held = false;
    std::atomic<int> recv_seconds = 0;  // how much longer the next recv() will have taken, for the thread that calls it
};

}  // namespace faults
