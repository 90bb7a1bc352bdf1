// libamdhip64 for machines without a GPU: the C ABI of the HIP runtime, answered by Python.
//
// Every call becomes serve(name, arguments) in hip_engine.gfx942.hip_runtime.server, which runs it
// on the emulated MI300X. Inside a Python process the running interpreter serves; in any other
// program libpython is loaded and started at the first call. Pointers are declared as integers of
// the same size, which the x86-64 ABI passes alike, so that one macro an arity is enough.
//
// Environment: GFX942_PYTHON (the interpreter whose packages are used) and GFX942_LIBPYTHON
// override what was found when this file was compiled.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

#define EXPORT __attribute__((visibility("default")))
enum { kSuccess = 0, kMissingConfiguration = 52, kNotInitialized = 3 };

typedef uintptr_t ptr;
typedef size_t size;
typedef int32_t i32;
typedef uint32_t u32;
typedef struct { u32 x, y, z; } Dim3;
typedef int64_t (*Serve)(const char* name, const uint64_t* arguments);

static Serve serve;  // set by Python through attach()
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread i32 last_error;

// ---- The interpreter ----------------------------------------------------------------------------

static void run_bootstrap(int (*run)(const char*)) {
  char code[4096];
  snprintf(code, sizeof code,
           "def _start_hip_runtime():\n"
           "  import sys\n"
           "  root = [] if 'hip_engine' in sys.modules else ['%s']\n"
           "  sys.path[:0] = root\n"
           "  from hip_engine.gfx942.hip_runtime import server\n"
           "  del sys.path[:len(root)]\n"
           "  server.attach(%llu)\n"
           "_start_hip_runtime()\n"
           "del _start_hip_runtime\n",
           ROOT, (unsigned long long)(uintptr_t)&serve);
  if (run(code)) fprintf(stderr, "libamdhip64 (emulated gfx942): its Python side did not start\n");
}

static void start_embedded(void) {
  const char* path = getenv("GFX942_LIBPYTHON");
  if (!path) path = LIBPYTHON;
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    fprintf(stderr, "libamdhip64 (emulated gfx942): %s; set GFX942_LIBPYTHON\n", dlerror());
    return;
  }
  void (*set_program_name)(const wchar_t*) = dlsym(library, "Py_SetProgramName");
  void (*initialize)(int) = dlsym(library, "Py_InitializeEx");
  int (*run)(const char*) = dlsym(library, "PyRun_SimpleString");
  void* (*save_thread)(void) = dlsym(library, "PyEval_SaveThread");
  if (!initialize || !run || !save_thread) {
    fprintf(stderr, "libamdhip64 (emulated gfx942): %s is no libpython\n", path);
    return;
  }
  static wchar_t executable[4096];
  const char* python = getenv("GFX942_PYTHON");
  swprintf(executable, 4096, L"%s", python ? python : PYTHON);
  if (set_program_name) set_program_name(executable);
  initialize(0);
  run_bootstrap(run);
  save_thread();
}

static void start(void) {
  int (*initialized)(void) = dlsym(RTLD_DEFAULT, "Py_IsInitialized");
  if (!initialized || !initialized()) {
    start_embedded();
    return;
  }
  int (*ensure)(void) = dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
  void (*release)(int) = dlsym(RTLD_DEFAULT, "PyGILState_Release");
  int state = ensure();
  run_bootstrap(dlsym(RTLD_DEFAULT, "PyRun_SimpleString"));
  release(state);
}

// ---- What compiled HIP programs register before main --------------------------------------------
// Kept here until the first call, so that a program that never uses HIP never starts Python.

typedef struct Registration {
  const char* name;
  uint64_t arguments[4];
  struct Registration* next;
} Registration;

static pthread_mutex_t registrations_lock = PTHREAD_MUTEX_INITIALIZER;
static Registration* registrations;
static Registration** registrations_end = &registrations;

static void keep(const char* name, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  Registration* fresh = calloc(1, sizeof *fresh);
  *fresh = (Registration){name, {a, b, c, d}, NULL};
  pthread_mutex_lock(&registrations_lock);
  *registrations_end = fresh;
  registrations_end = &fresh->next;
  pthread_mutex_unlock(&registrations_lock);
}

static void deliver_registrations(void) {
  pthread_mutex_lock(&registrations_lock);
  Registration* first = registrations;
  registrations = NULL;
  registrations_end = &registrations;
  pthread_mutex_unlock(&registrations_lock);
  while (first) {
    Registration* next = first->next;
    serve(first->name, first->arguments);
    free(first);
    first = next;
  }
}

EXPORT ptr* __hipRegisterFatBinary(ptr wrapper) {
  ptr* handle = calloc(1, sizeof *handle);
  keep("__hipRegisterFatBinary", (uintptr_t)handle, wrapper, 0, 0);
  return handle;
}
EXPORT void __hipRegisterFunction(ptr handle, ptr host, ptr device_name, ptr name, u32 threads,
                                  ptr tid, ptr bid, ptr block, ptr grid, ptr warp) {
  (void)name, (void)threads, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
  keep("__hipRegisterFunction", handle, host, device_name, 0);
}
EXPORT void __hipRegisterVar(ptr handle, ptr host, ptr host_name, ptr device_name, i32 external,
                             size bytes, i32 constant, i32 global) {
  (void)host_name, (void)external, (void)constant, (void)global;
  keep("__hipRegisterVar", handle, host, device_name, bytes);
}
EXPORT void __hipRegisterManagedVar(ptr handle, ptr* pointer, ptr init, ptr name, size bytes,
                                    u32 align) {
  (void)align;
  keep("__hipRegisterManagedVar", handle, (uintptr_t)pointer, name, bytes);
  (void)init;
}
EXPORT void __hipRegisterTexture(void) {}
EXPORT void __hipRegisterSurface(void) {}
EXPORT void __hipUnregisterFatBinary(ptr handle) { (void)handle; }

// ---- Calls --------------------------------------------------------------------------------------

static int ready(void) {
  pthread_once(&once, start);
  if (serve && registrations) deliver_registrations();
  return serve != NULL;
}

static i32 call(const char* name, const uint64_t* arguments) {
  i32 status = ready() ? (i32)serve(name, arguments) : kNotInitialized;
  if (status) last_error = status;
  return status;
}

EXPORT i32 hipGetLastError(void) {
  i32 error = last_error;
  last_error = kSuccess;
  return error;
}
EXPORT i32 hipExtGetLastError(void) { return hipGetLastError(); }
EXPORT i32 hipPeekAtLastError(void) { return last_error; }

static const char* text(const char* name, i32 error) {
  uint64_t arguments[] = {(uint64_t)(int64_t)error};
  if (!ready()) return "the emulated HIP runtime did not start";
  return (const char*)(intptr_t)serve(name, arguments);
}
EXPORT const char* hipGetErrorName(i32 error) { return text("hipGetErrorName", error); }
EXPORT const char* hipGetErrorString(i32 error) { return text("hipGetErrorString", error); }

typedef struct {
  Dim3 grid, block;
  size lds;
  ptr stream;
} Configuration;
enum { kMaxConfigurations = 16 };
static __thread Configuration configurations[kMaxConfigurations];
static __thread int configured;

EXPORT i32 __hipPushCallConfiguration(Dim3 grid, Dim3 block, size lds, ptr stream) {
  if (configured == kMaxConfigurations) return last_error = kMissingConfiguration;
  configurations[configured++] = (Configuration){grid, block, lds, stream};
  return kSuccess;
}
EXPORT i32 __hipPopCallConfiguration(Dim3* grid, Dim3* block, size* lds, ptr* stream) {
  if (!configured) return last_error = kMissingConfiguration;
  const Configuration* top = &configurations[--configured];
  *grid = top->grid, *block = top->block, *lds = top->lds, *stream = top->stream;
  return kSuccess;
}

#define GEOMETRY grid.x, grid.y, grid.z, block.x, block.y, block.z
EXPORT i32 hipLaunchKernel(ptr function, Dim3 grid, Dim3 block, ptr arguments, size lds,
                           ptr stream) {
  uint64_t all[] = {function, GEOMETRY, arguments, lds, stream};
  return call("hipLaunchKernel", all);
}
EXPORT i32 hipExtLaunchKernel(ptr function, Dim3 grid, Dim3 block, ptr arguments, size lds,
                              ptr stream, ptr started, ptr stopped, i32 flags) {
  (void)flags;
  uint64_t all[] = {function, GEOMETRY, arguments, lds, stream, started, stopped};
  return call("hipExtLaunchKernel", all);
}

#define API(name, parameters, ...)       \
  EXPORT i32 name parameters {           \
    uint64_t all[] = {__VA_ARGS__};      \
    return call(#name, all);             \
  }
#define API0(name) API(name, (void), 0)
#define API1(name, A) API(name, (A a), a)
#define API2(name, A, B) API(name, (A a, B b), a, b)
#define API3(name, A, B, C) API(name, (A a, B b, C c), a, b, c)
#define API4(name, A, B, C, D) API(name, (A a, B b, C c, D d), a, b, c, d)
#define API5(name, A, B, C, D, E) API(name, (A a, B b, C c, D d, E e), a, b, c, d, e)
#define API6(name, A, B, C, D, E, F) \
  API(name, (A a, B b, C c, D d, E e, F f), a, b, c, d, e, f)
#define API7(name, A, B, C, D, E, F, G) \
  API(name, (A a, B b, C c, D d, E e, F f, G g), a, b, c, d, e, f, g)
#define API8(name, A, B, C, D, E, F, G, H) \
  API(name, (A a, B b, C c, D d, E e, F f, G g, H h), a, b, c, d, e, f, g, h)

#include "calls.h"

EXPORT i32 hipModuleLaunchKernel(ptr function, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz,
                                 u32 lds, ptr stream, ptr parameters, ptr extra) {
  uint64_t all[] = {function, gx, gy, gz, bx, by, bz, lds, stream, parameters, extra};
  return call("hipModuleLaunchKernel", all);
}
EXPORT i32 hipExtModuleLaunchKernel(ptr function, u32 nx, u32 ny, u32 nz, u32 bx, u32 by, u32 bz,
                                    size lds, ptr stream, ptr parameters, ptr extra, ptr started,
                                    ptr stopped, u32 flags) {
  (void)flags;
  uint64_t all[] = {function, nx, ny, nz, bx, by, bz, lds, stream, parameters, extra, started, stopped};
  return call("hipExtModuleLaunchKernel", all);
}
