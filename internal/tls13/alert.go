package tls13

import (
	"errors"
	"fmt"

	"github.com/go-tcpls/tcpls/internal/record"
)

// An Alert is the description of a TLS alert (RFC 8446, section 6).
type Alert uint8

// The alerts of TLS 1.3, with the codepoints of RFC 8446, B.2.
const (
	AlertCloseNotify                  Alert = 0
	AlertUnexpectedMessage            Alert = 10
	AlertBadRecordMAC                 Alert = 20
	AlertRecordOverflow               Alert = 22
	AlertHandshakeFailure             Alert = 40
	AlertBadCertificate               Alert = 42
	AlertUnsupportedCertificate       Alert = 43
	AlertCertificateRevoked           Alert = 44
	AlertCertificateExpired           Alert = 45
	AlertCertificateUnknown           Alert = 46
	AlertIllegalParameter             Alert = 47
	AlertUnknownCA                    Alert = 48
	AlertAccessDenied                 Alert = 49
	AlertDecodeError                  Alert = 50
	AlertDecryptError                 Alert = 51
	AlertProtocolVersion              Alert = 70
	AlertInsufficientSecurity         Alert = 71
	AlertInternalError                Alert = 80
	AlertInappropriateFallback        Alert = 86
	AlertUserCanceled                 Alert = 90
	AlertMissingExtension             Alert = 109
	AlertUnsupportedExtension         Alert = 110
	AlertUnrecognizedName             Alert = 112
	AlertBadCertificateStatusResponse Alert = 113
	AlertUnknownPSKIdentity           Alert = 115
	AlertCertificateRequired          Alert = 116
	AlertNoApplicationProtocol        Alert = 120
)

var alertNames = map[Alert]string{
	AlertCloseNotify:                  "close_notify",
	AlertUnexpectedMessage:            "unexpected_message",
	AlertBadRecordMAC:                 "bad_record_mac",
	AlertRecordOverflow:               "record_overflow",
	AlertHandshakeFailure:             "handshake_failure",
	AlertBadCertificate:               "bad_certificate",
	AlertUnsupportedCertificate:       "unsupported_certificate",
	AlertCertificateRevoked:           "certificate_revoked",
	AlertCertificateExpired:           "certificate_expired",
	AlertCertificateUnknown:           "certificate_unknown",
	AlertIllegalParameter:             "illegal_parameter",
	AlertUnknownCA:                    "unknown_ca",
	AlertAccessDenied:                 "access_denied",
	AlertDecodeError:                  "decode_error",
	AlertDecryptError:                 "decrypt_error",
	AlertProtocolVersion:              "protocol_version",
	AlertInsufficientSecurity:         "insufficient_security",
	AlertInternalError:                "internal_error",
	AlertInappropriateFallback:        "inappropriate_fallback",
	AlertUserCanceled:                 "user_canceled",
	AlertMissingExtension:             "missing_extension",
	AlertUnsupportedExtension:         "unsupported_extension",
	AlertUnrecognizedName:             "unrecognized_name",
	AlertBadCertificateStatusResponse: "bad_certificate_status_response",
	AlertUnknownPSKIdentity:           "unknown_psk_identity",
	AlertCertificateRequired:          "certificate_required",
	AlertNoApplicationProtocol:        "no_application_protocol",
}

// String returns the alert's name in RFC 8446.
func (a Alert) String() string {
	if name, ok := alertNames[a]; ok {
		return name
	}
	return fmt.Sprintf("alert(%d)", uint8(a))
}

// ErrVersion matches, by errors.Is, every error that says that the peer
// doesn't speak TLS 1.3: a ServerHello of an older version, a ClientHello
// without version 1.3, or the peer's own alert protocol_version. A caller may
// then try again with crypto/tls.
var ErrVersion = errors.New("peer doesn't speak TLS 1.3")

// ErrNotTLS matches, by errors.Is, the error that says that the peer's first
// bytes are something else's.
var ErrNotTLS = errors.New("peer doesn't speak TLS")

// An Error is a rule that this end found broken, mostly by the peer. It ends
// the connection with its Alert.
type Error struct {
	Alert Alert // what the peer is told

	text  string
	cause error
}

func (e *Error) Error() string {
	text := e.text
	switch {
	case text == "" && e.cause != nil:
		text = e.cause.Error()
	case e.cause != nil && e.cause != ErrVersion && e.cause != ErrNotTLS:
		text += ": " + e.cause.Error()
	}
	return fmt.Sprintf("tls13: %s (%v)", text, e.Alert)
}

// Unwrap returns the reason beneath, such as a
// *tls.CertificateVerificationError, or nil.
func (e *Error) Unwrap() error { return e.cause }

// An AlertError is a fatal alert that the peer sent.
type AlertError struct {
	Alert Alert
}

func (e *AlertError) Error() string { return "remote error: tls: " + e.Alert.String() }

// Is makes the alert protocol_version match ErrVersion.
func (e *AlertError) Is(target error) bool {
	return target == ErrVersion && e.Alert == AlertProtocolVersion
}

// Because makes an Error of a rule that the caller found broken.
func (a Alert) Because(err error) *Error { return &Error{Alert: a, cause: err} }

const (
	levelWarning = 1
	levelFatal   = 2
)

// ParseAlert reads the content of an Alert record, which is one alert and no
// more. Its level must be one that exists, and means nothing otherwise
// (section 6). An error is an *Error.
func ParseAlert(content []byte) (Alert, error) {
	switch {
	case len(content) == 0:
		return 0, broken(AlertUnexpectedMessage, "peer sends an empty Alert record")
	case len(content) != 2:
		return 0, broken(AlertDecodeError, "peer sends an Alert record of %d bytes", len(content))
	case content[0] != levelWarning && content[0] != levelFatal:
		return 0, broken(AlertIllegalParameter, "peer sends an alert of level %d", content[0])
	}
	return Alert(content[1]), nil
}

// broken describes a rule that the peer broke.
func broken(a Alert, format string, args ...any) *Error {
	return &Error{Alert: a, text: fmt.Sprintf(format, args...)}
}

// because gives an error from below its alert and its place.
func because(a Alert, cause error, format string, args ...any) *Error {
	return &Error{Alert: a, text: fmt.Sprintf(format, args...), cause: cause}
}

// refusal gives an error that a callback returned its place, and its alert: that
// of an *Error within it, and else a.
func refusal(a Alert, err error, format string, args ...any) *Error {
	if own, ok := errors.AsType[*Error](err); ok {
		a = own.Alert
	}
	return because(a, err, format, args...)
}

// alertFor is the one place that decides which alert an error sends. None is
// sent in answer to the peer's own.
func alertFor(err error) (a Alert, send bool) {
	if _, ok := errors.AsType[*AlertError](err); ok {
		return 0, false
	}
	if own, ok := errors.AsType[*Error](err); ok {
		return own.Alert, true
	}
	return AlertInternalError, true
}

// recordError gives the errors of package record their alerts.
func recordError(err error) *Error {
	switch err {
	case record.ErrOverflow:
		return because(AlertRecordOverflow, err, "peer sent a bad record")
	case record.ErrAuth, record.ErrShort:
		return because(AlertBadRecordMAC, err, "peer sent a bad record")
	case record.ErrNoType:
		return because(AlertUnexpectedMessage, err, "peer sent a bad record")
	}
	return because(AlertInternalError, err, "record layer")
}
