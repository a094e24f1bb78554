#include "calls.h"

static PyObject *forget(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    forget_threads();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"forget_threads", forget, METH_NOARGS, "After a fork: every thread has to be prepared again."},
    {"is_exchange", is_exchange, METH_O, "Whether a Repeated can ask this DLPack exchange about tensors."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "softmax_ops.native.calls", NULL, -1, functions, NULL, NULL, NULL, NULL};

static int add(PyObject *module, const char *name, PyObject *object)
{
    int status = object == NULL ? -1 : PyModule_AddObjectRef(module, name, object);
    Py_XDECREF(object);
    return status;
}

PyMODINIT_FUNC PyInit_calls(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL &&
        (add(module, "Launches", launches_type()) < 0 || add(module, "Recent", recent_type()) < 0 ||
         add(module, "Repeated", repeated_type()) < 0 || add(module, "sources", PyUnicode_FromString(SOURCES)) < 0))
        Py_CLEAR(module);
    return module;
}
