// Package jsonwalk reads JSON as spans of its text: nothing is decoded, and nothing is copied
// that need not be.
//
//   - Walker validates and splits a text in one pass (RFC 8259), for bytes from outside.
//   - EachElement, EachMember and the functions below them find borders only, for a text that
//     was validated before.
//   - Text, KeyIs, Find, Count and CutLen work on the spans that a Walker returns.
package jsonwalk
