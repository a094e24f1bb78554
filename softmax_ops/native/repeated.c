#include "calls.h"

#include <math.h>
#include <string.h>

/* Of dlpack.h, version 1. */
typedef struct {
    void *data;
    struct {
        int32_t type, ordinal;
    } device;
    int32_t rank;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    struct {
        uint32_t major, minor;
    } version;
    void *previous;
    void (*other[3])(void);
    int (*describe)(void *tensor, DLTensor *description); /* dltensor_from_py_object_no_sync */
} DLPackExchangeAPI;

/* What a call writes to: the numbers of softmax_ops/known/plain.py. */
enum { NEW, FIRST, SECOND, APART };

/* The objects that a Repeated keeps: three flags, compared by identity, and what it asks. */
enum {
    CAUSAL,
    CAUSAL_OFFSET,
    BATCH_INVARIANT,
    IS_LIKE,
    NEW_LIKE,
    FIND,
    NEW_SCRATCH,
    DISPATCH_MODES,
    FORWARD_AD,
    ORDINAL,
    DEVICE,
    STREAM,
    INCREMENT_VERSION,
    KEPT
};

#define MAX_TENSORS 3 /* two inputs, or one and a mask, and out */
#define PLACES 16     /* combinations of addresses that are found here before FIND is asked */

typedef struct {
    PyObject *type;
    int32_t rank;
    int64_t *layout; /* shape, then strides */
} KnownTensor;

typedef struct {
    uint64_t addresses[MAX_TENSORS]; /* in the order of the launch */
    Launches *launches;
} Place;

typedef struct {
    PyObject ob_base;
    const DLPackExchangeAPI *exchange;
    PyObject *kept[KEPT];
    int tensors;
    KnownTensor known[MAX_TENSORS]; /* each once: first, second, out */
    int target, masked, backward, bumps;
    long ordinal; /* of the device */
    double limit; /* of the scale, on either side */
    Place places[PLACES];
    int next_place; /* to be replaced */
} Repeated;

/* Names of attributes, interned. */
static PyObject *text_current_level, *text_native;

/* What a callable says, as an int; -1 with an error. */
static long asked(PyObject *callable, PyObject *argument)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(callable, argument, NULL);
    if (answer == NULL)
        return -1;
    long value = PyLong_AsLong(answer);
    Py_DECREF(answer);
    return value;
}

static uint64_t address_of(const DLTensor *tensor)
{
    return (uint64_t)(uintptr_t)tensor->data + tensor->byte_offset;
}

/* 1 and its address if a tensor is laid out as the known one. 0 for others: a nested tensor, whose shape ends the
   process where IS_LIKE asks for it, one without memory, and what is no tensor. */
static int is_laid_out_like(Repeated *self, const KnownTensor *known, PyObject *tensor, uint64_t *address)
{
    DLTensor given;
    if ((PyObject *)Py_TYPE(tensor) != known->type)
        return 0;
    if (self->exchange->describe(tensor, &given) != 0) {
        PyErr_Clear();
        return 0;
    }
    *address = address_of(&given);
    size_t bytes = (size_t)known->rank * sizeof *known->layout;
    return given.rank == known->rank && memcmp(given.shape, known->layout, bytes) == 0 &&
           memcmp(given.strides, known->layout + known->rank, bytes) == 0;
}

/* 1 if nobody else has to see the call: no dispatch mode, no level of forward-mode differentiation. */
static int is_unobserved(Repeated *self)
{
    long modes = asked(self->kept[DISPATCH_MODES], NULL);
    if (modes != 0)
        return modes < 0 && PyErr_Occurred() ? -1 : 0;
    PyObject *level = PyObject_GetAttr(self->kept[FORWARD_AD], text_current_level);
    if (level == NULL)
        return -1;
    long depth = PyLong_AsLong(level);
    Py_DECREF(level);
    return PyErr_Occurred() ? -1 : depth < 0;
}

/* What launches operands that lie there: a new reference, Py_None where that is not known. */
static PyObject *found(Repeated *self, const uint64_t *addresses, Py_ssize_t operands)
{
    size_t bytes = (size_t)operands * sizeof *addresses;
    for (const Place *place = self->places; place != self->places + PLACES && place->launches != NULL; ++place)
        if (memcmp(addresses, place->addresses, bytes) == 0)
            return Py_NewRef((PyObject *)place->launches);
    PyObject *tuple = PyTuple_New(operands);
    if (tuple == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < operands; ++i) {
        PyObject *address = PyLong_FromUnsignedLongLong(addresses[i]);
        if (address == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
        PyTuple_SetItem(tuple, i, address);
    }
    PyObject *executable = PyObject_CallFunctionObjArgs(self->kept[FIND], tuple, NULL);
    Py_DECREF(tuple);
    if (executable == NULL || executable == Py_None)
        return executable;
    PyObject *launches = PyObject_GetAttr(executable, text_native);
    Py_DECREF(executable);
    if (launches == NULL || launches == Py_None)
        return launches;
    Place *place = &self->places[self->next_place];
    PyObject *replaced = (PyObject *)place->launches;
    place->launches = (Launches *)Py_NewRef(launches);
    memcpy(place->addresses, addresses, bytes);
    self->next_place = (self->next_place + 1) % PLACES;
    Py_XDECREF(replaced);
    return launches;
}

static int launch_known(Repeated *self, Launches *launches, const uint64_t *addresses, double scale, PyObject *result)
{
    PyObject *stream = PyObject_CallFunctionObjArgs(self->kept[STREAM], self->kept[ORDINAL], NULL);
    if (stream == NULL)
        return -1;
    uint64_t stream_address = PyLong_AsUnsignedLongLong(stream), workspace = 0;
    Py_DECREF(stream);
    if (PyErr_Occurred())
        return -1;
    PyObject *scratch = NULL;
    if (launches->workspace_bytes > 0) {
        scratch = PyObject_CallFunction(self->kept[NEW_SCRATCH], "On", result, launches->workspace_bytes);
        DLTensor description;
        if (scratch == NULL || self->exchange->describe(scratch, &description) != 0) {
            Py_XDECREF(scratch);
            return -1;
        }
        workspace = address_of(&description);
    }
    int status = launch(launches, addresses, scale, stream_address, -INFINITY, workspace);
    Py_XDECREF(scratch);
    if (status < 0 || !self->bumps)
        return status;
    PyObject *tensors = PyTuple_Pack(1, result);
    PyObject *done =
        tensors == NULL ? NULL : PyObject_CallFunctionObjArgs(self->kept[INCREMENT_VERSION], tensors, NULL);
    Py_XDECREF(tensors);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* 1 if all but addresses is as it was; then `addresses` has those of first, second and out, as far as they are known.
 */
static int is_same_call(Repeated *self, PyObject *first, PyObject *second, PyObject *out, uint64_t *addresses)
{
    PyObject *tensors[MAX_TENSORS] = {first, NULL, NULL};
    int count = 1;
    if (self->masked || self->backward)
        tensors[count++] = second;
    else if (second != Py_None)
        return 0;
    if (self->target == APART)
        tensors[count++] = out;
    else if (out != (self->target == NEW ? Py_None : self->target == FIRST ? first : second))
        return 0;
    int same = is_unobserved(self);
    for (int i = 0; i < count && same == 1; ++i)
        same = is_laid_out_like(self, &self->known[i], tensors[i], &addresses[i]);
    if (same != 1)
        return same;
    PyObject *answer = PyObject_CallFunctionObjArgs(self->kept[IS_LIKE], tensors[0], tensors[1], tensors[2], NULL);
    same = answer == NULL ? -1 : answer == Py_True;
    Py_XDECREF(answer);
    return same;
}

/* A new reference to what the call writes to, and its address. `addresses` are those of is_same_call. */
static PyObject *target(Repeated *self, PyObject *like, PyObject *out, const uint64_t *addresses, uint64_t *address)
{
    switch (self->target) {
    case FIRST:
        *address = addresses[0];
        break;
    case SECOND:
        *address = addresses[1];
        break;
    case APART:
        *address = addresses[self->tensors - 1];
        break;
    default: {
        DLTensor description;
        PyObject *result = PyObject_CallFunctionObjArgs(self->kept[NEW_LIKE], like, NULL);
        if (result != NULL && self->exchange->describe(result, &description) != 0)
            Py_CLEAR(result);
        if (result != NULL)
            *address = address_of(&description);
        return result;
    }
    }
    return Py_NewRef(out);
}

/* 1: launched; 0: the kernel is not known, and nothing was done. */
static int launch_at(Repeated *self, const uint64_t *addresses, double scale, PyObject *result)
{
    PyObject *launches = found(self, addresses, self->masked || self->backward ? 3 : 2);
    if (launches == NULL)
        return -1;
    int status = 0;
    if (launches != Py_None) {
        long device = asked(self->kept[DEVICE], NULL);
        if (device == -1 && PyErr_Occurred())
            status = -1;
        else if (device == self->ordinal)
            status = launch_known(self, (Launches *)launches, addresses, scale, result) < 0 ? -1 : 1;
    }
    Py_DECREF(launches);
    return status;
}

static PyObject *repeated_run(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    Repeated *self = (Repeated *)object;
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError, "run takes two tensors, scale, out and three flags");
        return NULL;
    }
    PyObject *first = arguments[0], *second = arguments[1], *out = arguments[3];
    if (Py_TYPE(arguments[2]) != &PyFloat_Type || arguments[4] != self->kept[CAUSAL] ||
        arguments[5] != self->kept[CAUSAL_OFFSET] || arguments[6] != self->kept[BATCH_INVARIANT])
        Py_RETURN_NONE;
    double scale = PyFloat_AsDouble(arguments[2]);
    if (!(fabs(scale) <= self->limit))
        Py_RETURN_NONE;
    uint64_t given[MAX_TENSORS] = {0}, written;
    int status = is_same_call(self, first, second, out, given);
    if (status < 0)
        return NULL;
    if (status == 0)
        Py_RETURN_NONE;
    PyObject *result = target(self, self->backward ? second : first, out, given, &written);
    if (result == NULL)
        return NULL;
    /* In the order of a launch: x, y, mask or dy, y, dx. */
    uint64_t addresses[] = {given[0], self->backward ? given[1] : written, self->backward ? written : given[1]};
    status = launch_at(self, addresses, scale, result);
    if (status == 1)
        return result;
    Py_DECREF(result);
    if (status < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int remember(Repeated *self, PyObject *tensors)
{
    self->tensors = (int)PyTuple_Size(tensors);
    if (self->tensors != 1 + (self->masked || self->backward) + (self->target == APART)) {
        PyErr_Format(PyExc_ValueError, "%d tensors; want first, second and out, each once", self->tensors);
        return -1;
    }
    for (int i = 0; i < self->tensors; ++i) {
        KnownTensor *known = &self->known[i];
        PyObject *tensor = PyTuple_GetItem(tensors, i);
        DLTensor given;
        if (self->exchange->describe(tensor, &given) != 0)
            return -1;
        known->type = Py_NewRef((PyObject *)Py_TYPE(tensor));
        known->rank = given.rank;
        known->layout = PyMem_Malloc(2 * (size_t)given.rank * sizeof *known->layout);
        if (known->layout == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(known->layout, given.shape, (size_t)given.rank * sizeof *known->layout);
        memcpy(known->layout + given.rank, given.strides, (size_t)given.rank * sizeof *known->layout);
    }
    return 0;
}

static PyObject *repeated_new(PyTypeObject *type, PyObject *positional, PyObject *named)
{
    static char *names[] = {"exchange",    "tensors",           "flags",      "target",
                            "masked",      "backward",          "bumps",      "device",
                            "limit",       "is_like",           "new_like",   "find",
                            "new_scratch", "dispatch_modes",    "forward_ad", "device_of_thread",
                            "stream_of",   "increment_version", NULL};
    PyObject *exchange, *tensors, *kept[KEPT];
    int target, masked, backward, bumps;
    double limit;
    if (!PyArg_ParseTupleAndKeywords(positional, named, "$OO!(OOO)ipppOdOOOOOOOOO", names, &exchange, &PyTuple_Type,
                                     &tensors, &kept[CAUSAL], &kept[CAUSAL_OFFSET], &kept[BATCH_INVARIANT], &target,
                                     &masked, &backward, &bumps, &kept[ORDINAL], &limit, &kept[IS_LIKE],
                                     &kept[NEW_LIKE], &kept[FIND], &kept[NEW_SCRATCH], &kept[DISPATCH_MODES],
                                     &kept[FORWARD_AD], &kept[DEVICE], &kept[STREAM], &kept[INCREMENT_VERSION]))
        return NULL;
    const DLPackExchangeAPI *api = PyCapsule_GetPointer(exchange, "dlpack_exchange_api");
    if (api == NULL)
        return NULL;
    if (api->version.major != 1) {
        PyErr_Format(PyExc_ValueError, "DLPack %u; want version 1", api->version.major);
        return NULL;
    }
    Repeated *self = (Repeated *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL)
        return NULL;
    self->exchange = api;
    for (int i = 0; i < KEPT; ++i)
        self->kept[i] = Py_NewRef(kept[i]);
    self->target = target;
    self->masked = masked;
    self->backward = backward;
    self->bumps = bumps;
    self->limit = limit;
    self->ordinal = PyLong_AsLong(kept[ORDINAL]);
    if (PyErr_Occurred() || remember(self, tensors) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void repeated_dealloc(PyObject *object)
{
    Repeated *self = (Repeated *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (int i = 0; i < KEPT; ++i)
        Py_XDECREF(self->kept[i]);
    for (int i = 0; i < MAX_TENSORS; ++i) {
        Py_XDECREF(self->known[i].type);
        PyMem_Free(self->known[i].layout);
    }
    for (int i = 0; i < PLACES; ++i)
        Py_XDECREF((PyObject *)self->places[i].launches);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef repeated_methods[] = {
    {"run", (PyCFunction)(void (*)(void))repeated_run, METH_FASTCALL,
     "run(first, second, scale, out, causal, causal_offset, batch_invariant): the result, or None"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot repeated_slots[] = {
    {Py_tp_new, repeated_new},
    {Py_tp_dealloc, repeated_dealloc},
    {Py_tp_methods, repeated_methods},
    {0, NULL},
};

PyObject *repeated_type(void)
{
    static PyType_Spec spec = {"softmax_ops.native.calls.Repeated", sizeof(Repeated), 0, Py_TPFLAGS_DEFAULT,
                               repeated_slots};
    text_current_level = PyUnicode_InternFromString("_current_level");
    text_native = PyUnicode_InternFromString("native");
    return text_current_level == NULL || text_native == NULL ? NULL : PyType_FromSpec(&spec);
}
