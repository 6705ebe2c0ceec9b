// Package process runs a program beside a test: its output goes into a file and is looked through for a ready line, and
// it doesn't outlive the test binary.
package process

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// logTail is how much of a program's log a failed test shows, in bytes.
const logTail = 3 << 10

// Process is a started program.
type Process struct {
	cmd   *exec.Cmd
	ready chan struct{}
	gone  chan struct{}
	err   error // why it ended; to be read after gone
}

// Start starts the command. Ready is closed when it has printed a line that contains readyLine.
func Start(cmd *exec.Cmd, log *Log, readyLine string) (*Process, error) {
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	// A test binary that is killed must not leave servers behind. SIGTERM, so that Duet stops its PostgreSQL too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	// What a program's own grandchildren hold open must not keep Wait waiting.
	cmd.WaitDelay = time.Second
	p := &Process{cmd: cmd, ready: make(chan struct{}), gone: make(chan struct{})}

	go p.read(reader, log, readyLine)
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that started the process ends, so this one must last as long.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			writer.Close()
			close(p.gone)
		}
	}()
	if err := <-started; err != nil {
		writer.Close()
		return nil, err
	}
	return p, nil
}

func (p *Process) read(reader io.Reader, log *Log, readyLine string) {
	var seen bool
	for lines := bufio.NewReader(reader); ; {
		line, err := lines.ReadString('\n')
		log.write(line)
		if !seen && readyLine != "" && strings.Contains(line, readyLine) {
			seen = true
			close(p.ready)
		}
		if err != nil {
			return
		}
	}
}

// Ready is closed when the ready line has been printed.
func (p *Process) Ready() <-chan struct{} { return p.ready }

// Gone is closed when the process has ended.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// Err is why the process ended; it may be asked after Gone is closed.
func (p *Process) Err() error { return p.err }

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.gone
}

// Stop asks the process to end, as an init system would, and kills it when it hasn't within the timeout.
func (p *Process) Stop(timeout time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.gone:
		return nil
	case <-time.After(timeout):
		p.Kill()
		return fmt.Errorf("%s was still there %v after SIGTERM", p.cmd.Path, timeout)
	}
}

// Log keeps all of a program's output in a file and can show the end of it.
type Log struct {
	mu   sync.Mutex
	file *os.File
	last []byte
}

// NewLog creates the file.
func NewLog(path string) (*Log, error) {
	file, err := os.Create(path)
	return &Log{file: file}, err
}

func (l *Log) write(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.file.WriteString(line)
	if l.last = append(l.last, line...); len(l.last) > 2*logTail {
		l.last = append([]byte(nil), l.last[len(l.last)-logTail:]...)
	}
}

// Tail is the last few kilobytes.
func (l *Log) Tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.last)
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }
