/* The compiled part of softmax_ops: launches, and calls that were made before, without the interpreter between their
   steps.

   launches.c   Launches: the grids of a launch plan (softmax_ops/launcher.py)
   repeated.c   Repeated: a known call (softmax_ops/known/call.py)
   recent.c     Recent: those used last, tried one after the other (softmax_ops/known/calls.py)
   module.c     softmax_ops.native.calls, which has them

   What the steps mean is said by those Python modules, which take them on hosts without the compiled part. */
#pragma once

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* one binary for every CPython from 3.11 on */
#include <Python.h>

#include <stdint.h>

#define MAX_ARGUMENTS 16
#define MAX_OPERANDS 16
#define MAX_PARAMETER_BYTES 1024

/* CUlaunchConfig of cuda.h. */
typedef struct {
    unsigned int grid[3], block[3], shared_bytes;
    void *stream;
    void *attributes;
    unsigned int attribute_count;
} LaunchConfig;

/* As cuda-bindings calls it: with its choice of library, version and default stream. */
typedef int (*LaunchKernel)(const LaunchConfig *, void *kernel, void **parameters, void **extra);

typedef struct {
    int offset; /* in the parameters; below 0: there is no such field */
    int is_double;
} RealField;

typedef struct {
    LaunchConfig config;
    int64_t moves[MAX_OPERANDS]; /* each operand's address, in bytes */
    char parameters[MAX_PARAMETER_BYTES];
} Grid;

typedef struct {
    PyObject ob_base;
    LaunchKernel launch_kernel;
    void *kernel;
    Py_ssize_t operands, parameter_bytes, grids;
    int address_offsets[MAX_OPERANDS];
    int workspace_offset; /* below 0: there is none */
    Py_ssize_t workspace_bytes;
    RealField scale, fill;
    Grid *grid;
    PyObject *kept; /* what the pointers above point into */
    PyObject *prepare, *fail;
} Launches;

/* 0, or -1 with an error. Called with a reference to self that lasts: other threads run while the driver works. */
int launch(Launches *self, const uint64_t *addresses, double scale, uint64_t stream, double fill, uint64_t workspace);

/* After a fork: every thread has to be prepared again. */
void forget_threads(void);

/* New references, or NULL with an error. */
PyObject *launches_type(void);
PyObject *repeated_type(void);
PyObject *recent_type(void);

/* Of a Repeated: the result, or None. */
PyObject *repeated_run(PyObject *repeated, PyObject *const *arguments, Py_ssize_t count);
