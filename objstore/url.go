package objstore

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Scheme is the kind of bucket a URL names.
type Scheme string

// The kinds of buckets.
const (
	SchemeS3     Scheme = "s3"
	SchemeMinIO  Scheme = "minio"
	SchemeFile   Scheme = "file"
	SchemeMemory Scheme = "mem"
)

// URL is a parsed bucket URL. It never holds a secret: those come from the environment, and a URL that
// carries one is refused, because URLs end up in logs and process lists.
type URL struct {
	Scheme    Scheme
	Path      string // file: the folder, absolute or relative to the working directory
	Bucket    string // s3, minio
	Prefix    string // s3, minio: keys are below it; without leading or trailing slash
	Region    string // s3, minio; empty: the usual sources
	Endpoint  string // s3: URL of the endpoint, empty for AWS; minio: host:port
	PathStyle bool   // s3: bucket in the path rather than in the host name
	Secure    bool   // minio: TLS (default true)
}

// ParseURL parses
//
//	s3://bucket/prefix?region=…&endpoint=http://host:port&path_style=true
//	minio://host:port/bucket/prefix?secure=false&region=…
//	file:///abs/dir, file:rel/dir
//	mem:
//
// An unknown parameter is an error.
func ParseURL(raw string) (URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// url.Error quotes the input, which may hold a secret.
		return URL{}, fmt.Errorf("bucket URL does not parse; want one that begins with s3://, minio://, file: or mem: only")
	}
	if u.User != nil {
		return URL{}, fmt.Errorf("bucket URL %s: credentials do not belong into the URL, set them in the environment", bare(u))
	}
	if u.Fragment != "" {
		return URL{}, fmt.Errorf("bucket URL %s: has a fragment (#…)", bare(u))
	}
	switch Scheme(u.Scheme) {
	case SchemeS3:
		return parseS3(u)
	case SchemeMinIO:
		return parseMinIO(u)
	case SchemeFile:
		return parseFile(u)
	case SchemeMemory:
		if u.Opaque != "" || u.Host != "" || u.Path != "" || u.RawQuery != "" {
			return URL{}, fmt.Errorf("bucket URL %s: want mem: and nothing behind it", bare(u))
		}
		return URL{Scheme: SchemeMemory}, nil
	case "":
		return URL{}, fmt.Errorf("bucket URL %q has no scheme; a folder is file:%s", raw, raw)
	default:
		return URL{}, fmt.Errorf("bucket URL %s: unknown scheme %q; want s3, minio, file or mem", bare(u), u.Scheme)
	}
}

func parseS3(u *url.URL) (URL, error) {
	out := URL{Scheme: SchemeS3, Bucket: u.Host}
	if out.Bucket == "" {
		return URL{}, fmt.Errorf("bucket URL %s: want s3://bucket/prefix", bare(u))
	}
	q, err := parameters(u, "region", "endpoint", "path_style")
	if err != nil {
		return URL{}, err
	}
	out.Region = q.Get("region")
	out.Endpoint = q.Get("endpoint")
	if out.Endpoint != "" {
		e, err := url.Parse(out.Endpoint)
		if err != nil || e.Host == "" || e.User != nil || (e.Scheme != "http" && e.Scheme != "https") {
			return URL{}, fmt.Errorf("bucket URL %s: endpoint wants http://host:port or https://host:port", bare(u))
		}
	}
	if out.PathStyle, err = boolean(u, q, "path_style", false); err != nil {
		return URL{}, err
	}
	out.Prefix, err = prefix(u, u.Path)
	return out, err
}

func parseMinIO(u *url.URL) (URL, error) {
	bucket, rest, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	out := URL{Scheme: SchemeMinIO, Endpoint: u.Host, Bucket: bucket}
	if out.Endpoint == "" || out.Bucket == "" {
		return URL{}, fmt.Errorf("bucket URL %s: want minio://host:port/bucket/prefix", bare(u))
	}
	q, err := parameters(u, "region", "secure")
	if err != nil {
		return URL{}, err
	}
	out.Region = q.Get("region")
	if out.Secure, err = boolean(u, q, "secure", true); err != nil {
		return URL{}, err
	}
	out.Prefix, err = prefix(u, rest)
	return out, err
}

func parseFile(u *url.URL) (URL, error) {
	if _, err := parameters(u); err != nil {
		return URL{}, err
	}
	if u.Host != "" && u.Host != "localhost" {
		return URL{}, fmt.Errorf("bucket URL %s: want file:///abs/dir or file:rel/dir (two slashes make %q a host name)", bare(u), u.Host)
	}
	path := u.Path
	if u.Opaque != "" {
		p, err := url.PathUnescape(u.Opaque)
		if err != nil {
			return URL{}, fmt.Errorf("bucket URL %s: %w", bare(u), err)
		}
		path = p
	}
	if path == "" {
		return URL{}, fmt.Errorf("bucket URL %s: want file:///abs/dir or file:rel/dir", bare(u))
	}
	return URL{Scheme: SchemeFile, Path: path}, nil
}

// parameters are the query's, each known and given once.
func parameters(u *url.URL, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("bucket URL %s: %w", bare(u), err)
	}
	for name, values := range q {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("bucket URL %s: unknown parameter %q; known are %v", bare(u), name, known)
		}
		if len(values) > 1 {
			return nil, fmt.Errorf("bucket URL %s: parameter %q is given %d times", bare(u), name, len(values))
		}
	}
	return q, nil
}

func boolean(u *url.URL, q url.Values, name string, byDefault bool) (bool, error) {
	s := q.Get(name)
	if s == "" {
		return byDefault, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("bucket URL %s: %s=%q is neither true nor false", bare(u), name, s)
	}
	return v, nil
}

func prefix(u *url.URL, path string) (string, error) {
	p := strings.Trim(path, "/")
	if p == "" {
		return "", nil
	}
	if err := ValidateKey(p); err != nil {
		return "", fmt.Errorf("bucket URL %s: prefix: %w", bare(u), err)
	}
	return p, nil
}

// bare is a URL without its parameters, for errors: people put secrets into those, too.
func bare(u *url.URL) string {
	b := url.URL{Scheme: u.Scheme, Opaque: u.Opaque, Host: u.Host, Path: u.Path}
	return b.String()
}

// String is the URL in the form that ParseURL reads.
func (u URL) String() string {
	q := url.Values{}
	if u.Region != "" {
		q.Set("region", u.Region)
	}
	out := url.URL{Scheme: string(u.Scheme)}
	switch u.Scheme {
	case SchemeS3:
		out.Host, out.Path = u.Bucket, "/"+u.Prefix
		if u.Endpoint != "" {
			q.Set("endpoint", u.Endpoint)
		}
		if u.PathStyle {
			q.Set("path_style", "true")
		}
	case SchemeMinIO:
		out.Host, out.Path = u.Endpoint, "/"+u.Bucket
		if u.Prefix != "" {
			out.Path += "/" + u.Prefix
		}
		q.Set("secure", strconv.FormatBool(u.Secure))
	case SchemeFile:
		if strings.HasPrefix(u.Path, "/") {
			return "file://" + (&url.URL{Path: u.Path}).EscapedPath()
		}
		out.Opaque = (&url.URL{Path: u.Path}).EscapedPath()
	case SchemeMemory:
		return "mem:"
	}
	out.RawQuery = q.Encode()
	return out.String()
}
