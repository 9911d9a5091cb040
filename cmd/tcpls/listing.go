package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// listingType is what the tool asks for; browsers get HTML.
const listingType = "application/vnd.tcpls.folder+json"

// maxEntries bounds a listing, and maxListing its encoding.
const (
	maxEntries = 10_000
	maxListing = 8 << 20
)

// A listing is a folder's content: folders first, then by name.
type listing struct {
	Path      string  `json:"path"`
	Entries   []entry `json:"entries"`
	Truncated bool    `json:"truncated,omitempty"` // there are more than maxEntries
}

type entry struct {
	Name   string    `json:"name"`
	Folder bool      `json:"folder,omitempty"`
	Size   int64     `json:"size"` // in bytes; 0 for a folder
	Time   time.Time `json:"time"`
}

// Href is relative to the folder.
func (e entry) Href() string {
	u := url.URL{Path: "./" + e.Name} // "./": a name may hold a colon
	if e.Folder {
		u.Path += "/"
	}
	return u.String()
}

func (e entry) SizeText() string {
	if e.Folder {
		return "-"
	}
	return size(e.Size).String()
}

func (e entry) TimeText() string { return e.Time.UTC().Format("2006-01-02 15:04") }

// list answers with the folder f.
func (s *fileServer) list(w http.ResponseWriter, r *http.Request, f *os.File, name string) {
	l, err := s.read(f, name)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	l.Path = r.URL.Path
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Vary", "Accept")
	if r.Header.Get("Accept") == listingType {
		w.Header().Set("Content-Type", listingType)
		json.NewEncoder(w).Encode(l)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	if err := page.Execute(w, l); err != nil {
		s.logger.Debug("listing", "err", err)
	}
}

// read collects the entries of the folder f that can be asked for.
func (s *fileServer) read(f *os.File, name string) (*listing, error) {
	l := &listing{Entries: []entry{}}
	for {
		batch, err := f.ReadDir(256)
		for _, d := range batch {
			if !s.shows(d.Name()) {
				continue
			}
			info, err := s.root.Stat(path.Join(name, d.Name())) // follows links, within the root
			if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
				continue
			}
			e := entry{Name: d.Name(), Folder: info.IsDir(), Time: info.ModTime()}
			if !e.Folder {
				e.Size = info.Size()
			}
			l.Entries = append(l.Entries, e)
		}
		l.Truncated = len(l.Entries) > maxEntries
		if l.Truncated || errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(l.Entries, func(a, b entry) int {
		if a.Folder != b.Folder {
			if a.Folder {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Name, b.Name)
	})
	l.Entries = l.Entries[:min(len(l.Entries), maxEntries)]
	return l, nil
}

// page is a folder in a browser.
var page = template.Must(template.New("folder").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Path}}</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.2rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600 }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884 }
td:first-child { overflow-wrap: anywhere }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
a { text-decoration: none }
a:hover { text-decoration: underline }
</style>
</head>
<body>
<h1>{{.Path}}</h1>
<table>
<thead><tr><th>Name</th><th class="n">Size</th><th class="n">Modified (UTC)</th></tr></thead>
<tbody>
{{if ne .Path "/"}}<tr><td><a href="../">../</a></td><td class="n"></td><td class="n"></td></tr>
{{end}}{{range .Entries}}<tr><td><a href="{{.Href}}">{{.Name}}{{if .Folder}}/{{end}}</a></td><td class="n">{{.SizeText}}</td><td class="n">{{.TimeText}}</td></tr>
{{else}}<tr><td colspan="3">This folder is empty.</td></tr>
{{end}}</tbody>
</table>
{{if .Truncated}}<p>There are more entries than are shown here.</p>{{end}}
</body>
</html>
`))

// show prints a folder that the tool asked for, with the URL of each entry.
func (l *listing) show(w io.Writer, from target) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, e := range l.Entries {
		p := strings.TrimSuffix(from.path, "/") + "/" + e.Name
		if e.Folder {
			p += "/"
		}
		// The URL is escaped, and so can't hold what steers a terminal.
		fmt.Fprintf(table, "%s\t%s\t%s\n", e.SizeText(), e.TimeText(), from.share(p))
	}
	return table.Flush()
}
