// Package files carries files and folders between two devices.
package files
