#include "calls.h"

static PyObject *forget(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    forget_threads();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"forget_threads", forget, METH_NOARGS, "After a fork: every thread has to be prepared again."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "softmax_ops.native.calls", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_calls(void)
{
    PyObject *module = PyModule_Create(&definition), *launches = launches_type(), *repeated = repeated_type();
    if (module != NULL &&
        (launches == NULL || repeated == NULL || PyModule_AddObjectRef(module, "Launches", launches) < 0 ||
         PyModule_AddObjectRef(module, "Repeated", repeated) < 0))
        Py_CLEAR(module);
    Py_XDECREF(launches);
    Py_XDECREF(repeated);
    return module;
}
