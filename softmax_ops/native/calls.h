/* The compiled part of softmax_ops: launches and repeated calls, without running the interpreter between their steps.

   launches.c   Launches: the grids of a launch plan (softmax_ops/launcher.py)
   repeated.c   Repeated: a known call (softmax_ops/known/call.py)
   recent.c     Recent: the known calls used last, tried one after the other (softmax_ops/known/calls.py)
   tensors.c    addresses and layouts of tensors
   module.c     softmax_ops.native.calls, the module with these types

   Those Python modules explain the steps. On hosts without the compiled part launcher.py launches, and no call is
   known. */
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

/* The signature as in cuda-bindings, with its choice of library, version and default stream. */
typedef int (*LaunchKernel)(const LaunchConfig *, void *kernel, void **parameters, void **extra);

typedef struct {
    int offset; /* in the parameters; negative: there is no such field */
    int is_double;
} RealField;

typedef struct {
    LaunchConfig config;
    int64_t moves[MAX_OPERANDS]; /* added to each operand's address, in bytes */
    char parameters[MAX_PARAMETER_BYTES];
} Grid;

typedef struct {
    PyObject ob_base;
    LaunchKernel launch_kernel;
    void *kernel;
    Py_ssize_t operands, parameter_bytes, grids;
    int address_offsets[MAX_OPERANDS];
    int workspace_offset; /* negative: there is none */
    Py_ssize_t workspace_bytes;
    RealField scale, fill;
    Grid *grid;
    PyObject *kept; /* keeps alive what the pointers above point into */
    PyObject *prepare, *fail;
} Launches;

/* Returns 0, or -1 with an error. The caller's reference to self must last: other threads run during driver calls. */
int launch(Launches *self, const uint64_t *addresses, double scale, uint64_t stream, double fill, uint64_t workspace);

/* After a fork, every thread has to be prepared again. */
void forget_threads(void);

/* DLPack's exchange of C structs; NULL stands for none, and methods of the tensor are called instead. */
typedef struct Exchange Exchange;

/* The exchange in a capsule; NULL if there is none that can be used. */
const Exchange *exchange_in(PyObject *capsule);

/* What is_laid_out_like compares a tensor with. */
typedef struct {
    PyObject *type;
    int32_t rank;
    int64_t *layout; /* shape, then strides; NULL without an exchange */
} Likeness;

/* Stores a tensor's type and, through an exchange, its layout, and frees them again; 0, or -1 with an error. */
int remember_tensor(const Exchange *exchange, Likeness *known, PyObject *tensor);
void forget_tensor(Likeness *known);

/* 1 and its address for a tensor of the known one's type and, through an exchange, its layout. 0 for others: also for a
   nested tensor, one without memory, and an object that is not a tensor. */
int is_laid_out_like(const Exchange *exchange, const Likeness *known, PyObject *tensor, uint64_t *address);

/* The address of a tensor's first element; 0, or -1 with an error. */
int locate(const Exchange *exchange, PyObject *tensor, uint64_t *address);

/* Before the functions above are called; 0, or -1 with an error. */
int prepare_tensors(void);

/* New references, or NULL with an error. */
PyObject *launches_type(void);
PyObject *repeated_type(void);
PyObject *recent_type(void);

/* Whether an object is a DLPack exchange that a Repeated can use; otherwise it calls methods of tensors. */
PyObject *is_exchange(PyObject *module, PyObject *exchange);

/* Runs a Repeated: the result, or None if it does not know the call. */
PyObject *repeated_run(PyObject *repeated, PyObject *const *arguments, Py_ssize_t count);
