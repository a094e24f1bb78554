#include "calls.h"

#include <string.h>

/* From dlpack.h, version 1; an Exchange is a DLPackExchangeAPI. */
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

struct Exchange {
    struct {
        uint32_t major, minor;
    } version;
    void *previous;
    void (*other[3])(void);
    int (*describe)(void *tensor, DLTensor *description); /* dltensor_from_py_object_no_sync, may be NULL */
};

/* Names of attributes, interned. */
static PyObject *text_is_nested, *text_data_ptr;

int prepare_tensors(void)
{
    text_is_nested = PyUnicode_InternFromString("is_nested");
    text_data_ptr = PyUnicode_InternFromString("data_ptr");
    return PyErr_Occurred() ? -1 : 0;
}

const Exchange *exchange_in(PyObject *capsule)
{
    if (!PyCapsule_IsValid(capsule, "dlpack_exchange_api"))
        return NULL;
    const Exchange *exchange = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    return exchange->version.major == 1 && exchange->describe != NULL ? exchange : NULL;
}

PyObject *is_exchange(PyObject *module, PyObject *capsule)
{
    (void)module;
    return PyBool_FromLong(exchange_in(capsule) != NULL);
}

/* locate; through an exchange also a description. */
static int describe(const Exchange *exchange, PyObject *tensor, DLTensor *description, uint64_t *address)
{
    if (exchange != NULL) {
        if (exchange->describe(tensor, description) != 0)
            return -1;
        *address = (uint64_t)(uintptr_t)description->data + description->byte_offset;
        return 0;
    }
    PyObject *number = PyObject_CallMethodObjArgs(tensor, text_data_ptr, NULL);
    if (number == NULL)
        return -1;
    *address = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return PyErr_Occurred() ? -1 : 0;
}

int locate(const Exchange *exchange, PyObject *tensor, uint64_t *address)
{
    DLTensor description;
    return describe(exchange, tensor, &description, address);
}

/* 1 if Python may be asked about a tensor: its shape, if it were nested, would end the process. An exchange refuses
   such a tensor. */
static int has_one_shape(const Exchange *exchange, PyObject *tensor)
{
    if (exchange != NULL)
        return 1;
    PyObject *is_nested = PyObject_GetAttr(tensor, text_is_nested);
    Py_XDECREF(is_nested);
    return is_nested == Py_False;
}

int is_laid_out_like(const Exchange *exchange, const Likeness *known, PyObject *tensor, uint64_t *address)
{
    DLTensor given;
    if ((PyObject *)Py_TYPE(tensor) != known->type)
        return 0;
    if (!has_one_shape(exchange, tensor) || describe(exchange, tensor, &given, address) < 0) {
        PyErr_Clear();
        return 0;
    }
    if (known->layout == NULL)
        return 1;
    size_t bytes = (size_t)known->rank * sizeof *known->layout;
    return given.rank == known->rank && memcmp(given.shape, known->layout, bytes) == 0 &&
           memcmp(given.strides, known->layout + known->rank, bytes) == 0;
}

int remember_tensor(const Exchange *exchange, Likeness *known, PyObject *tensor)
{
    DLTensor given;
    known->type = Py_NewRef((PyObject *)Py_TYPE(tensor));
    if (exchange == NULL)
        return 0;
    if (exchange->describe(tensor, &given) != 0)
        return -1;
    size_t bytes = (size_t)given.rank * sizeof *known->layout;
    known->layout = PyMem_Malloc(2 * bytes);
    if (known->layout == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(known->layout, given.shape, bytes);
    memcpy(known->layout + given.rank, given.strides, bytes);
    known->rank = given.rank;
    return 0;
}

void forget_tensor(Likeness *known)
{
    Py_XDECREF(known->type);
    PyMem_Free(known->layout);
}
