"""The HIP runtime without a GPU: libamdhip64 that runs on the emulated MI300X.

`build.build()` makes the shared library; with its folder on LD_LIBRARY_PATH a HIP program that was
compiled elsewhere runs on a CPU, from C, C++ or Python:

    python -m hip_engine.gfx942 hip ./program arguments      builds it and runs the program
    eval "$(python -m hip_engine.gfx942 hip)"                or sets the path in this shell

What works: one device that calls itself gfx942; device, pinned and managed memory (one address
space: a device address is readable on the host); copies and fills, 2-D too; kernels of <<<>>>
launches (hipcc's registration calls), of hipModuleLoad*, of bundles, compressed bundles and bare
code objects; device symbols; streams, events, host functions; stream capture, also over several
streams, and graph launches; occupancy queries; every call's error code, with its reason in
hipGetErrorString. Work runs when it is enqueued, so streams are always idle; order and semantics
are kept. A kernel that faults is printed once, and its code is sticky as on the hardware until
hipDeviceReset.

What does not: printf and malloc in kernels (hostcall), textures, cooperative and multi-device
launches, IPC, memory pools and virtual memory, explicit graph nodes, hiprtc, kernels that wait for
each other across streams. A missing call is an undefined symbol that the loader names.
"""
