#include "calls.h"

#include <math.h>
#include <string.h>

/* What an argument must match: a tensor like the known one, any scale, or this very value; a kind >= 0 is the index of
   an argument that must be the same object. Then operands that are not arguments. All numbers are those of
   softmax_ops/known/call.py. */
enum { TENSOR = -1, SCALE = -2, VALUE = -3 };
enum { NEW = -1, ROWS = -2 };

/* The Python objects that a Repeated uses. */
enum {
    IS_LIKE,
    FIND,
    NEW_RESULT,
    NEW_ROWS, /* None: the call has none */
    NEW_SCRATCH,
    RECORDS, /* None: autograd has nothing to record */
    DISPATCH_MODES,
    FORWARD_AD,
    ORDINAL,
    EXCHANGE_DEVICE,
    RESTORE_DEVICE,
    STREAM,
    INCREMENT_VERSION,
    OBJECTS
};

#define PLACES 16 /* combinations of addresses kept here; FIND is asked only for others */

typedef struct {
    long kind;
    PyObject *value;   /* if it is a VALUE */
    Likeness likeness; /* if it is a TENSOR */
} Argument;

typedef struct {
    uint64_t addresses[MAX_OPERANDS]; /* in the order of the launch */
    Launches *launches;
} Place;

typedef struct {
    PyObject ob_base;
    const Exchange *exchange; /* NULL before torch 2.10 */
    PyObject *recorded;       /* makes a call that autograd has to record; None: run does not */
    PyObject *objects[OBJECTS];
    int arguments, operands;
    Argument argument[MAX_ARGUMENTS];
    long operand[MAX_OPERANDS]; /* index of the argument, NEW or ROWS */
    int out, like;              /* arguments: the one written to, and the one that a new result is like */
    int bumps;
    long ordinal; /* of the device */
    double scale; /* if it is not an argument */
    double fill;
    double limit; /* of the magnitude of a scale */
    Place places[PLACES];
    int next_place; /* the next one to be replaced */
} Repeated;

/* The arguments of a call. */
typedef struct {
    PyObject *const *arguments;
    double scale;
    uint64_t addresses[MAX_ARGUMENTS]; /* of its tensors */
} Call;

/* Names of attributes, interned. */
static PyObject *text_current_level, *text_native;

/* The result of a callable as an int; -1 with an error. */
static long call_for_long(PyObject *callable, PyObject *argument)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(callable, argument, NULL);
    if (answer == NULL)
        return -1;
    long value = PyLong_AsLong(answer);
    Py_DECREF(answer);
    return value;
}

/* 1 and its value for a float, also of a subclass, or an int within the range of floats; True is not a number. */
static int is_number(PyObject *given, double *value)
{
    if (!PyFloat_Check(given) && Py_TYPE(given) != &PyLong_Type)
        return 0;
    *value = PyFloat_AsDouble(given);
    if (*value != -1.0 || !PyErr_Occurred())
        return 1;
    PyErr_Clear();
    return 0;
}

/* 1 if equal and of the same type; for numbers and tuples of numbers. */
static int is_same(PyObject *given, PyObject *known)
{
    if (given == known)
        return 1;
    if (Py_TYPE(given) != Py_TYPE(known))
        return 0;
    if (Py_TYPE(given) == &PyLong_Type || Py_TYPE(given) == &PyFloat_Type)
        return PyObject_RichCompareBool(given, known, Py_EQ);
    if (Py_TYPE(given) != &PyTuple_Type || PyTuple_Size(given) != PyTuple_Size(known))
        return 0;
    int same = 1;
    for (Py_ssize_t i = 0; i < PyTuple_Size(given) && same == 1; ++i)
        same = is_same(PyTuple_GetItem(given, i), PyTuple_GetItem(known, i));
    return same;
}

/* 1 if neither a dispatch mode nor a level of forward-mode differentiation needs to see the call. */
static int is_unobserved(Repeated *self)
{
    long modes = call_for_long(self->objects[DISPATCH_MODES], NULL);
    if (modes != 0)
        return modes < 0 && PyErr_Occurred() ? -1 : 0;
    PyObject *level = PyObject_GetAttr(self->objects[FORWARD_AD], text_current_level);
    if (level == NULL)
        return -1;
    long depth = PyLong_AsLong(level);
    Py_DECREF(level);
    return PyErr_Occurred() ? -1 : depth < 0;
}

/* 1 if everything except addresses matches the known call. */
static int is_same_call(Repeated *self, Call *call)
{
    PyObject *const *given = call->arguments;
    PyObject *tensors[MAX_ARGUMENTS];
    int count = 0, same = 1;
    for (int i = 0; i < self->arguments && same == 1; ++i) {
        const Argument *known = &self->argument[i];
        if (known->kind == TENSOR) {
            tensors[count++] = given[i];
            same = is_laid_out_like(self->exchange, &known->likeness, given[i], &call->addresses[i]);
        } else if (known->kind == SCALE) {
            same = is_number(given[i], &call->scale) && fabs(call->scale) <= self->limit;
        } else if (known->kind == VALUE) {
            same = is_same(given[i], known->value);
        } else {
            same = given[i] == given[known->kind];
            call->addresses[i] = call->addresses[known->kind];
        }
    }
    if (same == 1)
        same = is_unobserved(self);
    if (same != 1)
        return same;
    PyObject *compared = PyTuple_New(count);
    if (compared == NULL)
        return -1;
    for (int i = 0; i < count; ++i)
        PyTuple_SetItem(compared, i, Py_NewRef(tensors[i]));
    PyObject *answer = PyObject_CallObject(self->objects[IS_LIKE], compared);
    Py_DECREF(compared);
    same = answer == NULL ? -1 : answer == Py_True;
    Py_XDECREF(answer);
    return same;
}

/* The Launches for operands at these addresses: a new reference, Py_None if it is not known. */
static PyObject *found(Repeated *self, const uint64_t *addresses)
{
    size_t bytes = (size_t)self->operands * sizeof *addresses;
    for (const Place *place = self->places; place != self->places + PLACES && place->launches != NULL; ++place)
        if (memcmp(addresses, place->addresses, bytes) == 0)
            return Py_NewRef((PyObject *)place->launches);
    PyObject *tuple = PyTuple_New(self->operands);
    if (tuple == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < self->operands; ++i) {
        PyObject *address = PyLong_FromUnsignedLongLong(addresses[i]);
        if (address == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
        PyTuple_SetItem(tuple, i, address);
    }
    PyObject *executable = PyObject_CallFunctionObjArgs(self->objects[FIND], tuple, NULL);
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

/* A tensor made by a callable to be like another one, and its address; a new reference. */
static PyObject *made(Repeated *self, PyObject *maker, PyObject *like, uint64_t *address)
{
    PyObject *tensor = PyObject_CallFunctionObjArgs(maker, like, NULL);
    if (tensor != NULL && locate(self->exchange, tensor, address) < 0)
        Py_CLEAR(tensor);
    return tensor;
}

static int launch_on_stream(Repeated *self, Launches *launches, const uint64_t *addresses, double scale,
                            PyObject *result)
{
    PyObject *stream = PyObject_CallFunctionObjArgs(self->objects[STREAM], self->objects[ORDINAL], NULL);
    if (stream == NULL)
        return -1;
    uint64_t stream_address = PyLong_AsUnsignedLongLong(stream), workspace = 0;
    Py_DECREF(stream);
    if (PyErr_Occurred())
        return -1;
    PyObject *scratch = NULL;
    if (launches->workspace_bytes > 0) {
        scratch = PyObject_CallFunction(self->objects[NEW_SCRATCH], "On", result, launches->workspace_bytes);
        if (scratch == NULL || locate(self->exchange, scratch, &workspace) < 0) {
            Py_XDECREF(scratch);
            return -1;
        }
    }
    int status = launch(launches, addresses, scale, stream_address, self->fill, workspace);
    Py_XDECREF(scratch);
    if (status < 0 || !self->bumps)
        return status;
    PyObject *tensors = PyTuple_Pack(1, result);
    PyObject *done =
        tensors == NULL ? NULL : PyObject_CallFunctionObjArgs(self->objects[INCREMENT_VERSION], tensors, NULL);
    Py_XDECREF(tensors);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* 1: launched; 0: the kernel is not known, and nothing was done. */
static int launch_at(Repeated *self, const uint64_t *addresses, double scale, PyObject *result)
{
    PyObject *launches = found(self, addresses);
    if (launches == NULL)
        return -1;
    int status = 0;
    if (launches != Py_None)
        status = launch_on_stream(self, (Launches *)launches, addresses, scale, result) < 0 ? -1 : 1;
    Py_DECREF(launches);
    return status;
}

/* The device must be current. `result` and `rows`, NULL at first, become new references. Returns as launch_at. */
static int compute(Repeated *self, const Call *call, PyObject **result, PyObject **rows)
{
    PyObject *like = call->arguments[self->like];
    uint64_t result_address = 0, rows_address = 0, addresses[MAX_OPERANDS];
    int is_new = self->argument[self->out].kind == VALUE;
    *result =
        is_new ? made(self, self->objects[NEW_RESULT], like, &result_address) : Py_NewRef(call->arguments[self->out]);
    if (*result == NULL)
        return -1;
    if (self->objects[NEW_ROWS] != Py_None) {
        *rows = made(self, self->objects[NEW_ROWS], like, &rows_address);
        if (*rows == NULL)
            return -1;
    }
    for (int i = 0; i < self->operands; ++i) {
        long operand = self->operand[i];
        addresses[i] = operand == NEW ? result_address : operand == ROWS ? rows_address : call->addresses[operand];
    }
    return launch_at(self, addresses, call->scale, *result);
}

/* compute on the device; keeps its error, if any. Restores the device that was current before. */
static int compute_on_device(Repeated *self, const Call *call, PyObject **result, PyObject **rows)
{
    long previous = call_for_long(self->objects[EXCHANGE_DEVICE], self->objects[ORDINAL]);
    if (previous == -1 && PyErr_Occurred())
        return -1;
    int status = compute(self, call, result, rows);
    if (previous == self->ordinal)
        return status;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *done = PyObject_CallFunction(self->objects[RESTORE_DEVICE], "l", previous);
    if (done != NULL) {
        Py_DECREF(done);
        PyErr_Restore(type, error, traceback);
        return status;
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return -1;
}

/* is_same_call of as many arguments as the known call has. */
static int matches(Repeated *self, Call *call, Py_ssize_t count)
{
    if (count == self->arguments)
        return is_same_call(self, call);
    PyErr_Format(PyExc_TypeError, "a call has %d arguments, and got %zd", self->arguments, count);
    return -1;
}

static PyObject *repeated_knows(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    Call call = {.arguments = arguments};
    int same = matches((Repeated *)object, &call, count);
    return same < 0 ? NULL : PyBool_FromLong(same);
}

/* A call that autograd has to record: what `recorded` gives for its arguments, or None. */
static PyObject *record(Repeated *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (self->recorded == Py_None)
        return Py_NewRef(Py_None);
    PyObject *given = PyTuple_New(count);
    if (given == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; ++i)
        PyTuple_SetItem(given, i, Py_NewRef(arguments[i]));
    PyObject *answer = PyObject_CallObject(self->recorded, given);
    Py_DECREF(given);
    return answer;
}

PyObject *repeated_run(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    Repeated *self = (Repeated *)object;
    Call call = {.arguments = arguments, .scale = self->scale};
    PyObject *result = NULL, *rows = NULL;
    int status = matches(self, &call, count);
    if (status == 1 && self->objects[RECORDS] != Py_None) {
        long records = call_for_long(self->objects[RECORDS], NULL);
        if (records != 0)
            return records < 0 ? NULL : record(self, arguments, count);
    }
    if (status == 1)
        status = compute_on_device(self, &call, &result, &rows);
    PyObject *answer = NULL;
    if (status == 0)
        answer = Py_NewRef(Py_None);
    else if (status == 1)
        answer = rows == NULL ? Py_NewRef(result) : PyTuple_Pack(2, result, rows);
    Py_XDECREF(result);
    Py_XDECREF(rows);
    return answer;
}

static int learn(Repeated *self, PyObject *kinds, PyObject *values, PyObject *tensors, PyObject *operands)
{
    self->arguments = (int)PyTuple_Size(kinds);
    self->operands = (int)PyTuple_Size(operands);
    if (self->arguments > MAX_ARGUMENTS || self->operands > MAX_OPERANDS || PyTuple_Size(values) != self->arguments) {
        PyErr_Format(PyExc_ValueError, "%d arguments of at most %d, %d operands of at most %d", self->arguments,
                     MAX_ARGUMENTS, self->operands, MAX_OPERANDS);
        return -1;
    }
    for (int i = 0; i < self->operands; ++i)
        self->operand[i] = PyLong_AsLong(PyTuple_GetItem(operands, i));
    for (int i = 0, tensor_at = 0; i < self->arguments; ++i) {
        Argument *known = &self->argument[i];
        known->value = Py_NewRef(PyTuple_GetItem(values, i));
        known->kind = PyLong_AsLong(PyTuple_GetItem(kinds, i));
        if (known->kind == TENSOR) {
            PyObject *tensor = PyTuple_GetItem(tensors, tensor_at++);
            if (tensor == NULL || remember_tensor(self->exchange, &known->likeness, tensor) < 0)
                return -1;
        }
    }
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *repeated_new(PyTypeObject *type, PyObject *positional, PyObject *named)
{
    /* clang-format off */
    static char *names[] = {"exchange", "kinds", "values", "tensors", "operands", "like", "out", "scale", "fill",
                            "limit", "bumps", "is_like", "find", "new_result", "new_rows", "new_scratch", "records",
                            "recorded", "dispatch_modes", "forward_ad", "device", "exchange_device",
                            "restore_device", "stream_of", "increment_version", NULL};
    /* clang-format on */
    PyObject *recorded, *capsule, *kinds, *values, *tensors, *operands, *objects[OBJECTS];
    int like, out, bumps;
    double scale, fill, limit;
    if (!PyArg_ParseTupleAndKeywords(
            positional, named, "$OO!O!O!O!iidddpOOOOOOOOOOOOOO", names, &capsule, &PyTuple_Type, &kinds, &PyTuple_Type,
            &values, &PyTuple_Type, &tensors, &PyTuple_Type, &operands, &like, &out, &scale, &fill, &limit, &bumps,
            &objects[IS_LIKE], &objects[FIND], &objects[NEW_RESULT], &objects[NEW_ROWS], &objects[NEW_SCRATCH],
            &objects[RECORDS], &recorded, &objects[DISPATCH_MODES], &objects[FORWARD_AD], &objects[ORDINAL],
            &objects[EXCHANGE_DEVICE], &objects[RESTORE_DEVICE], &objects[STREAM], &objects[INCREMENT_VERSION]))
        return NULL;
    Repeated *self = (Repeated *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL)
        return NULL;
    self->exchange = exchange_in(capsule);
    self->recorded = Py_NewRef(recorded);
    for (int i = 0; i < OBJECTS; ++i)
        self->objects[i] = Py_NewRef(objects[i]);
    self->like = like;
    self->out = out;
    self->bumps = bumps;
    self->scale = scale;
    self->fill = fill;
    self->limit = limit;
    self->ordinal = PyLong_AsLong(objects[ORDINAL]);
    if (PyErr_Occurred() || learn(self, kinds, values, tensors, operands) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void repeated_dealloc(PyObject *object)
{
    Repeated *self = (Repeated *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(self->recorded);
    for (int i = 0; i < OBJECTS; ++i)
        Py_XDECREF(self->objects[i]);
    for (int i = 0; i < MAX_ARGUMENTS; ++i) {
        Py_XDECREF(self->argument[i].value);
        forget_tensor(&self->argument[i].likeness);
    }
    for (int i = 0; i < PLACES; ++i)
        Py_XDECREF((PyObject *)self->places[i].launches);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef repeated_methods[] = {
    {"run", (PyCFunction)(void (*)(void))repeated_run, METH_FASTCALL,
     "run(*arguments): the result, that of `recorded` where autograd has to record the call, or None"},
    {"knows", (PyCFunction)(void (*)(void))repeated_knows, METH_FASTCALL,
     "knows(*arguments): whether these are the arguments of such a call, at any addresses"},
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
    return PyErr_Occurred() || prepare_tensors() < 0 ? NULL : PyType_FromSpec(&spec);
}
