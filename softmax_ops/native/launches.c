#include "calls.h"

#include <math.h>
#include <string.h>

/* Signature and name of the capsule that cuda-bindings exports. */
static const char LAUNCH_KERNEL[] = "CUresult (CUlaunchConfig const *, CUfunction, void **, void **)";

/* CUDA_ERROR_INVALID_CONTEXT of cuda.h. */
#define INVALID_CONTEXT 201

/* CU_STREAM_LEGACY of cuda.h, which torch's default stream, 0, is; to a driver with per-thread default streams 0 is
   another. */
#define LEGACY_STREAM 1

/* A thread must be prepared once, again in the child of a fork, and again if its context was taken away. */
static unsigned int process = 1;
static _Thread_local unsigned int prepared_in = 0;

void forget_threads(void) { ++process; }

static int put_real(char *parameters, RealField field, double value)
{
    if (field.offset < 0)
        return 0;
    if (field.is_double) {
        memcpy(parameters + field.offset, &value, sizeof value);
        return 0;
    }
    float rounded = (float)value;
    if (isinf(rounded) && !isinf(value)) {
        PyObject *given = PyFloat_FromDouble(value);
        if (given != NULL)
            PyErr_Format(PyExc_OverflowError, "a scale or fill is %R; kernels want one within float32, +-3.4028235e+38",
                         given);
        Py_XDECREF(given);
        return -1;
    }
    memcpy(parameters + field.offset, &rounded, sizeof rounded);
    return 0;
}

static int prepare_thread(Launches *self)
{
    PyObject *done = PyObject_CallNoArgs(self->prepare);
    if (done == NULL)
        return -1;
    Py_DECREF(done);
    prepared_in = process;
    return 0;
}

/* Returns the driver's status. Other threads run meanwhile. */
static int launch_grid(Launches *self, const LaunchConfig *config, void **blocks)
{
    PyThreadState *state = PyEval_SaveThread();
    int status = self->launch_kernel(config, self->kernel, blocks, NULL);
    PyEval_RestoreThread(state);
    return status;
}

int launch(Launches *self, const uint64_t *addresses, double scale, uint64_t stream, double fill, uint64_t workspace)
{
    if (prepared_in != process && prepare_thread(self) < 0)
        return -1;
    for (const Grid *grid = self->grid; grid != self->grid + self->grids; ++grid) {
        _Alignas(16) char parameters[MAX_PARAMETER_BYTES];
        memcpy(parameters, grid->parameters, (size_t)self->parameter_bytes);
        for (Py_ssize_t i = 0; i < self->operands; ++i) {
            uint64_t address = addresses[i] + (uint64_t)grid->moves[i];
            memcpy(parameters + self->address_offsets[i], &address, sizeof address);
        }
        if (self->workspace_offset >= 0)
            memcpy(parameters + self->workspace_offset, &workspace, sizeof workspace);
        if (put_real(parameters, self->scale, scale) < 0 || put_real(parameters, self->fill, fill) < 0)
            return -1;
        LaunchConfig config = grid->config;
        config.stream = (void *)(uintptr_t)(stream != 0 ? stream : LEGACY_STREAM);
        void *blocks[] = {parameters};
        int status = launch_grid(self, &config, blocks);
        if (status == INVALID_CONTEXT) {
            if (prepare_thread(self) < 0)
                return -1;
            status = launch_grid(self, &config, blocks);
        }
        if (status != 0) {
            PyObject *never = PyErr_Occurred() ? NULL : PyObject_CallFunction(self->fail, "i", status);
            Py_XDECREF(never);
            return -1;
        }
    }
    return 0;
}

static int addresses_from(PyObject *tuple, uint64_t *addresses, Py_ssize_t expected)
{
    if (!PyTuple_Check(tuple) || PyTuple_Size(tuple) != expected) {
        PyErr_Format(PyExc_ValueError, "addresses: want a tuple of %zd, one per operand", expected);
        return -1;
    }
    for (Py_ssize_t i = 0; i < expected; ++i)
        addresses[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, i));
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *launches_launch(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    Launches *self = (Launches *)object;
    uint64_t addresses[MAX_OPERANDS];
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "launch takes addresses, scale, stream, fill and workspace");
        return NULL;
    }
    if (addresses_from(arguments[0], addresses, self->operands) < 0)
        return NULL;
    double scale = PyFloat_AsDouble(arguments[1]), fill = PyFloat_AsDouble(arguments[3]);
    uint64_t stream = PyLong_AsUnsignedLongLong(arguments[2]), workspace = PyLong_AsUnsignedLongLong(arguments[4]);
    if (PyErr_Occurred() || launch(self, addresses, scale, stream, fill, workspace) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int grid_from(Launches *self, Grid *grid, PyObject *description)
{
    unsigned long long config;
    const char *parameters;
    Py_ssize_t bytes;
    PyObject *moves;
    if (!PyArg_ParseTuple(description, "Ky#O!", &config, &parameters, &bytes, &PyTuple_Type, &moves))
        return -1;
    if (bytes > MAX_PARAMETER_BYTES || PyTuple_Size(moves) != self->operands) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of parameters of at most %d, %zd moves of %zd operands", bytes,
                     MAX_PARAMETER_BYTES, PyTuple_Size(moves), self->operands);
        return -1;
    }
    grid->config = *(const LaunchConfig *)(uintptr_t)config;
    memcpy(grid->parameters, parameters, (size_t)bytes);
    self->parameter_bytes = bytes;
    for (Py_ssize_t i = 0; i < self->operands; ++i)
        grid->moves[i] = PyLong_AsLongLong(PyTuple_GetItem(moves, i));
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *launches_new(PyTypeObject *type, PyObject *positional, PyObject *named)
{
    static char *names[] = {"launch_kernel", "kernel", "grids",   "addresses", "scale", "fill",
                            "workspace",     "kept",   "prepare", "fail",      NULL};
    PyObject *capsule, *grids, *addresses, *kept, *prepare, *fail;
    unsigned long long kernel;
    RealField scale, fill;
    int workspace;
    Py_ssize_t workspace_bytes;
    if (!PyArg_ParseTupleAndKeywords(positional, named, "OKO!O!(ip)(ip)(in)OOO", names, &capsule, &kernel, &PyList_Type,
                                     &grids, &PyTuple_Type, &addresses, &scale.offset, &scale.is_double, &fill.offset,
                                     &fill.is_double, &workspace, &workspace_bytes, &kept, &prepare, &fail))
        return NULL;
    LaunchKernel launch_kernel = (LaunchKernel)PyCapsule_GetPointer(capsule, LAUNCH_KERNEL);
    if (launch_kernel == NULL)
        return NULL;
    if (PyTuple_Size(addresses) > MAX_OPERANDS) {
        PyErr_Format(PyExc_ValueError, "%zd operands of at most %d", PyTuple_Size(addresses), MAX_OPERANDS);
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Launches *self = (Launches *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->launch_kernel = launch_kernel;
    self->kernel = (void *)(uintptr_t)kernel;
    self->scale = scale;
    self->fill = fill;
    self->workspace_offset = workspace;
    self->workspace_bytes = workspace_bytes;
    self->kept = Py_NewRef(kept);
    self->prepare = Py_NewRef(prepare);
    self->fail = Py_NewRef(fail);
    self->operands = PyTuple_Size(addresses);
    for (Py_ssize_t i = 0; i < self->operands; ++i)
        self->address_offsets[i] = (int)PyLong_AsLong(PyTuple_GetItem(addresses, i));
    self->grids = PyList_Size(grids);
    self->grid = PyMem_Calloc((size_t)self->grids, sizeof(Grid));
    if (self->grid == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < self->grids && !PyErr_Occurred(); ++i)
        grid_from(self, &self->grid[i], PyList_GetItem(grids, i));
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void launches_dealloc(PyObject *object)
{
    Launches *self = (Launches *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyMem_Free(self->grid);
    Py_XDECREF(self->kept);
    Py_XDECREF(self->prepare);
    Py_XDECREF(self->fail);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef launches_methods[] = {
    {"launch", (PyCFunction)(void (*)(void))launches_launch, METH_FASTCALL,
     "launch(addresses, scale, stream, fill, workspace)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot launches_slots[] = {
    {Py_tp_new, launches_new},
    {Py_tp_dealloc, launches_dealloc},
    {Py_tp_methods, launches_methods},
    {0, NULL},
};

PyObject *launches_type(void)
{
    static PyType_Spec spec = {"softmax_ops.native.calls.Launches", sizeof(Launches), 0, Py_TPFLAGS_DEFAULT,
                               launches_slots};
    return PyType_FromSpec(&spec);
}
