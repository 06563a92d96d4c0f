//! The tile instructions in software, for tests on processors without AMX.
//!
//! An instruction that a processor does not know raises SIGILL. [`install`] sets a handler that decodes
//! the instruction where it stands, carries it out on tiles in memory, and goes on behind it: the very
//! machine code of the kernel is run, only slowly. What this cannot show is speed.
//!
//! Encodings and operations: Intel, "Architecture Instruction Set Extensions Programming Reference",
//! chapter 3. A processor that has AMX never comes here.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tile registers and their configuration, one set per thread as in the processor.
struct Registers {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    tiles: [[u8; 1024]; 8],
}

thread_local! {
    static REGISTERS: RefCell<Registers> = const {
        RefCell::new(Registers {
            configured: false,
            rows: [0; 8],
            row_bytes: [0; 8],
            tiles: [[0; 1024]; 8],
        })
    };
}

static INSTALLED: OnceLock<bool> = OnceLock::new();
/// Instructions carried out so far, by all threads.
static EXECUTED: AtomicU64 = AtomicU64::new(0);

/// Whether unknown tile instructions are carried out here.
pub(super) fn is_installed() -> bool {
    INSTALLED.get().copied().unwrap_or(false)
}

/// How many instructions were carried out.
pub(crate) fn executed() -> u64 {
    EXECUTED.load(Ordering::Relaxed)
}

/// From now on tile instructions work in this process; true where they are carried out here.
pub(crate) fn install() -> bool {
    *INSTALLED.get_or_init(|| {
        if super::amx::processor_has_it() {
            return false;
        }
        // SAFETY: the structure is plain data, for which zeros are valid; the handler has the
        // signature that SA_SIGINFO asks for, and touches only its thread's tiles and the context.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn on_illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands the context of the interrupted thread to a handler with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = usize::try_from(registers[libc::REG_RIP as usize]).unwrap_or(0);
    // SAFETY: the processor fetched an instruction from here; tile instructions have 5 to 10 bytes,
    // and code never ends a page exactly behind one (a return follows).
    let code: [u8; 16] = unsafe { std::ptr::read_unaligned(rip as *const [u8; 16]) };
    let done = REGISTERS.with_borrow_mut(|tiles| execute(&code, registers, tiles));
    match done {
        Some(length) => {
            EXECUTED.fetch_add(1, Ordering::Relaxed);
            registers[libc::REG_RIP as usize] += length;
        }
        // Some other illegal instruction: end as if there were no handler.
        None => std::process::abort(),
    }
}

/// Carries out one instruction; its length, or `None` when it is none of AMX.
fn execute(code: &[u8; 16], registers: &[i64; 23], tiles: &mut Registers) -> Option<i64> {
    // Three-byte VEX prefix, map 0F38, 128 bits, W = 0.
    let [0xc4, second, third, opcode, modrm, ..] = *code else { return None };
    if second & 0x1f != 2 || third & 0x84 != 0 {
        return None;
    }
    let (prefix, vvvv) = (third & 3, usize::from(!third >> 3 & 0xf));
    let (reg, rm) = (usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let in_register = modrm >> 6 == 3;
    match (opcode, prefix, in_register) {
        (0x49, 0, true) if modrm == 0xc0 => {
            tiles.configured = false;
            Some(5)
        }
        // TILEZERO.
        (0x49, 3, true) if rm == 0 && tiles.configured => {
            tiles.tiles[reg].fill(0);
            Some(5)
        }
        (0x49, 0, false) if reg == 0 => {
            let operand = address(code, registers)?;
            // SAFETY: LDTILECFG reads 64 bytes, as the kernel's configuration has.
            let config = unsafe { std::ptr::read_unaligned(operand.base as *const [u8; 64]) };
            tiles.configure(config)?;
            Some(operand.length)
        }
        (0x4b, 3 | 2, false) if rm == 4 && tiles.configured => {
            let operand = address(code, registers)?;
            for row in 0..tiles.rows[reg] {
                let at = operand.base + row * operand.stride;
                let bytes = &mut tiles.tiles[reg][row * 64..][..tiles.row_bytes[reg]];
                // SAFETY: the instruction moves these bytes between memory and the tile; the kernel
                // vouches for the memory as it does towards the processor.
                unsafe {
                    if prefix == 3 {
                        bytes.copy_from_slice(std::slice::from_raw_parts(
                            at as *const u8,
                            bytes.len(),
                        ));
                    } else {
                        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len());
                    }
                }
            }
            Some(operand.length)
        }
        (0x5c, 2, true) if tiles.configured => {
            tiles.multiply(reg, rm, vvvv)?;
            Some(5)
        }
        (0x5e, 3 | 2, true) if tiles.configured => {
            tiles.multiply_bytes(reg, rm, vvvv, prefix == 3)?;
            Some(5)
        }
        _ => None,
    }
}

impl Registers {
    fn configure(&mut self, config: [u8; 64]) -> Option<()> {
        if config[0] != 1 || config[1] != 0 {
            return None;
        }
        for tile in 0..8 {
            self.row_bytes[tile] = usize::from(config[16 + 2 * tile]);
            self.rows[tile] = usize::from(config[48 + tile]);
            if self.rows[tile] > 16 || self.row_bytes[tile] > 64 {
                return None;
            }
        }
        self.tiles = [[0; 1024]; 8];
        self.configured = true;
        Some(())
    }

    /// Whether the sizes of the tiles of a product fit each other.
    fn check_sizes(&self, to: usize, left: usize, right: usize) -> Option<()> {
        let fits = right <= 7
            && self.rows[to] == self.rows[left]
            && self.rows[right] == self.row_bytes[left] / 4
            && self.row_bytes[to] == self.row_bytes[right];
        fits.then_some(())
    }

    /// TDPBSSD and TDPBSUD: `to[m][n] += sum over i of left[m][4k + i] right[k][4n + i]`, wrapping;
    /// left bytes are signed, right ones if `right_signed`.
    fn multiply_bytes(
        &mut self,
        to: usize,
        left: usize,
        right: usize,
        right_signed: bool,
    ) -> Option<()> {
        self.check_sizes(to, left, right)?;
        let signed = |byte: u8| i32::from(byte.cast_signed());
        for m in 0..self.rows[to] {
            for n in 0..self.row_bytes[to] / 4 {
                let at = m * 64 + 4 * n;
                let mut bytes = [0; 4];
                bytes.copy_from_slice(&self.tiles[to][at..at + 4]);
                let mut sum = i32::from_le_bytes(bytes);
                for (k, i) in (0..self.rows[right]).flat_map(|k| (0..4).map(move |i| (k, i))) {
                    let a = signed(self.tiles[left][m * 64 + 4 * k + i]);
                    let b = self.tiles[right][k * 64 + 4 * n + i];
                    let b = if right_signed { signed(b) } else { i32::from(b) };
                    sum = sum.wrapping_add(a * b);
                }
                self.tiles[to][at..at + 4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        Some(())
    }

    /// TDPBF16PS: `to[m][n] += left[m][2k] right[k][2n] + left[m][2k + 1] right[k][2n + 1]`.
    fn multiply(&mut self, to: usize, left: usize, right: usize) -> Option<()> {
        self.check_sizes(to, left, right)?;
        let word = |tile: &[u8; 1024], row: usize, i: usize| {
            let bytes = [tile[row * 64 + 2 * i], tile[row * 64 + 2 * i + 1]];
            f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
        };
        for m in 0..self.rows[to] {
            for n in 0..self.row_bytes[to] / 4 {
                let at = m * 64 + 4 * n;
                let mut bytes = [0; 4];
                bytes.copy_from_slice(&self.tiles[to][at..at + 4]);
                let mut sum = f32::from_le_bytes(bytes);
                for k in 0..self.rows[right] {
                    for i in 0..2 {
                        let (a, b) = (&self.tiles[left], &self.tiles[right]);
                        sum = word(a, m, 2 * k + i).mul_add(word(b, k, 2 * n + i), sum);
                    }
                }
                self.tiles[to][at..at + 4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        Some(())
    }
}

/// A memory operand: base with displacement, stride (the index register), and length of the instruction.
struct Address {
    base: usize,
    stride: usize,
    length: i64,
}

/// Decodes the memory operand behind opcode and `ModRM` byte.
fn address(code: &[u8; 16], registers: &[i64; 23]) -> Option<Address> {
    let (second, modrm) = (code[1], code[4]);
    let (extend_index, extend_base) =
        (usize::from(!second >> 6 & 1), usize::from(!second >> 5 & 1));
    let (mode, rm) = (modrm >> 6, usize::from(modrm & 7));
    let (base, stride, mut length) = if rm == 4 {
        let sib = code[5];
        let index = usize::from(sib >> 3 & 7) + 8 * extend_index;
        // Index 4 stands for none.
        let stride = if index == 4 { 0 } else { general(registers, index)? << (sib >> 6) };
        (usize::from(sib & 7) + 8 * extend_base, stride, 6)
    } else {
        (rm + 8 * extend_base, 0, 5)
    };
    if mode == 0 && base & 7 == 5 {
        return None;
    }
    let displacement = match mode {
        0 => 0,
        1 => {
            length += 1;
            i64::from(i8::from_le_bytes([code[length - 1]]))
        }
        _ => {
            length += 4;
            let bytes = &code[length - 4..length];
            i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        }
    };
    let base = general(registers, base)?.checked_add_signed(isize::try_from(displacement).ok()?)?;
    Some(Address { base, stride, length: i64::try_from(length).ok()? })
}

/// Value of a general register by its number in encodings.
fn general(registers: &[i64; 23], number: usize) -> Option<usize> {
    use libc::*;
    let order = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
        REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    let place = usize::try_from(*order.get(number)?).ok()?;
    usize::try_from(registers[place]).ok()
}
