package testserver

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// copyTemplate fills an empty data directory with a copy of one that this Duet has made before, and stopped in cleanly:
// empty, at revision 1, but with PostgreSQL's initdb behind it, which takes longer than most tests do.
func copyTemplate(binary, dir string) error {
	template, err := templateOf(binary)
	if err != nil {
		return fmt.Errorf("making the data directory that tests start from: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	// cp keeps owners, which matter when PostgreSQL runs as another user. A directory that is there keeps its own mode.
	source, target := template, dir
	if _, err := os.Stat(dir); err == nil {
		source, target = template+"/.", dir
	}
	if output, err := exec.Command("cp", "-a", source, target).CombinedOutput(); err != nil {
		return fmt.Errorf("copying %s: %w: %s", template, err, strings.TrimSpace(string(output)))
	}
	return nil
}

// templateOf returns the path of the binary's data directory in the cache, and makes it the first time. Those of older
// binaries are removed.
func templateOf(binary string) (string, error) {
	cache := os.Getenv("DUET_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(base, "duet")
	}
	templates := filepath.Join(cache, "templates")
	if err := os.MkdirAll(templates, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(templates, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	built, err := os.Stat(binary)
	if err != nil {
		return "", err
	}
	byPath, byBuild := digest(binary), digest(fmt.Sprint(built.Size(), built.ModTime().UnixNano()))
	template := filepath.Join(templates, byPath+"-"+byBuild)
	if _, err := os.Stat(template); err == nil {
		return template, nil
	}
	outdated, err := filepath.Glob(filepath.Join(templates, byPath+"-*"))
	if err != nil {
		return "", err
	}
	for _, path := range outdated {
		if err := os.RemoveAll(path); err != nil {
			return "", err
		}
	}
	fresh, err := os.MkdirTemp("", "duet-template-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := os.Chmod(fresh, 0o755); err != nil {
		return "", err
	}
	server, err := launch(Options{Binary: binary, Kind: Duet, Dir: filepath.Join(fresh, "data")}, false)
	if err != nil {
		return "", err
	}
	if err := server.Close(); err != nil {
		return "", err
	}
	output, err := exec.Command("cp", "-a", filepath.Join(fresh, "data"), template+".new").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, output)
	}
	return template, os.Rename(template+".new", template)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}
