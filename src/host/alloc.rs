//! The server's allocator as Rust's: module memory counts in `used_memory`, `maxmemory` and MEMORY DOCTOR.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;

use redis_module::raw;

/// What malloc guarantees on every platform the servers run on.
const MALLOC_ALIGN: usize = 16;

struct ServerAllocator;

#[global_allocator]
static ALLOCATOR: ServerAllocator = ServerAllocator;

/// The size to ask for. Redis's jemalloc aligns sizes that are no multiple of 16 to 8 only, and hashbrown's vector loads
/// crash on that: sizes are rounded up to the alignment.
fn size(layout: Layout) -> usize {
    layout.pad_to_align().size()
}

// SAFETY: memory comes from the server's malloc family (thread-safe, as the servers free on background threads), with
// sizes that give the alignment; layouts beyond malloc's alignment go to the system's allocator in all four functions alike.
unsafe impl GlobalAlloc for ServerAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract; the pointers are filled in before any Rust code of ours allocates.
        unsafe {
            if layout.align() > MALLOC_ALIGN {
                return System.alloc(layout);
            }
            raw::RedisModule_Alloc.map_or(null_mut(), |alloc| alloc(size(layout)).cast())
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe {
            if layout.align() > MALLOC_ALIGN {
                return System.alloc_zeroed(layout);
            }
            raw::RedisModule_Calloc.map_or(null_mut(), |calloc| calloc(1, size(layout)).cast())
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; `pointer` came from the same branch, since the alignment is the same.
        unsafe {
            if layout.align() > MALLOC_ALIGN {
                return System.realloc(pointer, layout, new_size);
            }
            let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else { return null_mut() };
            raw::RedisModule_Realloc.map_or(null_mut(), |realloc| realloc(pointer.cast(), size(new_layout)).cast())
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe {
            if layout.align() > MALLOC_ALIGN {
                return System.dealloc(pointer, layout);
            }
            if let Some(free) = raw::RedisModule_Free {
                free(pointer.cast());
            }
        }
    }
}
