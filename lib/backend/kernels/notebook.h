/// C++'s stderr in a notebook. Read by __init__.py, which says what its marks mean.

/// While kernels compile, the thread that waits for them prints how many are done; it holds the interpreter's lock and
/// can tell Python. All else, and all other threads, write to the file descriptor, which the notebook's kernel shows as
/// soon as it runs Python again. Text is kept until its line ends: Jittor prints a line piece by piece.
//// header stderr
#include <cstdio>
#include <iostream>
#include <streambuf>
#include <string>
#include <unistd.h>
extern "C" int PyGILState_Check();
struct NotebookStderr : std::streambuf {
    void (*progress)(int, int);
    explicit NotebookStderr(void (*progress)(int, int)) : progress(progress) {}
    std::string& text() { static thread_local std::string held; return held; }
    int overflow(int c) override {
        text() += char(c);
        return c == '\n' || c == '\r' ? sync() : c;
    }
    int sync() override {
        std::string line;
        line.swap(text());
        int done, all;
        if (sscanf(line.c_str(), "Compiling Operators(%d/%d)", &done, &all) == 2 && PyGILState_Check()) progress(done, all);
        else if (line != "\n" && ::write(2, line.data(), line.size()) < 0) return -1;  // empty lines surround the count
        return 0;
    }
};

//// kernel redirect: stderr
    std::cerr.rdbuf(new NotebookStderr((void (*)(int, int)) in0_p[0]));
    std::cerr.unsetf(std::ios::unitbuf);  // else every piece is flushed
    out_p[0] = 0;
