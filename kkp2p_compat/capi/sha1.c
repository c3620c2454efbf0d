/* HMAC-SHA1: RFC 2104 with FIPS 180-4 (RFC 3174). */
#include "internal.h"

#define BLOCK_BYTES 64
#define LENGTH_BYTES 8
#define DIGEST_BYTES 20

struct sha1 {
    uint32_t state[5];
    uint64_t bytes; /* so far */
    unsigned char block[BLOCK_BYTES];
};

static uint32_t rotate(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

static void add_block(struct sha1 *sha1) {
    static const uint32_t constants[] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
    uint32_t words[80], a, b, c, d, e;

    for (int i = 0; i < 16; i++) {
        const unsigned char *at = sha1->block + 4 * i;
        words[i] = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
    }
    for (int i = 16; i < 80; i++)
        words[i] = rotate(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1);
    a = sha1->state[0];
    b = sha1->state[1];
    c = sha1->state[2];
    d = sha1->state[3];
    e = sha1->state[4];
    for (int i = 0; i < 80; i++) {
        uint32_t mixed = i < 20   ? (b & c) | (~b & d)
                         : i < 40 ? b ^ c ^ d
                         : i < 60 ? (b & c) | (b & d) | (c & d)
                                  : b ^ c ^ d;
        uint32_t next = rotate(a, 5) + mixed + e + words[i] + constants[i / 20];
        e = d;
        d = c;
        c = rotate(b, 30);
        b = a;
        a = next;
    }
    sha1->state[0] += a;
    sha1->state[1] += b;
    sha1->state[2] += c;
    sha1->state[3] += d;
    sha1->state[4] += e;
}

static void begin(struct sha1 *sha1) {
    static const uint32_t first[] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};

    memcpy(sha1->state, first, sizeof(first));
    sha1->bytes = 0;
}

static void add(struct sha1 *sha1, const void *data, size_t length) {
    const unsigned char *rest = data;

    for (; length > 0; rest++, length--) {
        sha1->block[sha1->bytes++ % BLOCK_BYTES] = *rest;
        if (sha1->bytes % BLOCK_BYTES == 0)
            add_block(sha1);
    }
}

static void end(struct sha1 *sha1, unsigned char digest[DIGEST_BYTES]) {
    uint64_t bits = sha1->bytes * 8;
    unsigned char length[LENGTH_BYTES];

    for (int i = 0; i < LENGTH_BYTES; i++)
        length[i] = (unsigned char)(bits >> (56 - 8 * i));
    add(sha1, "\x80", 1);
    while (sha1->bytes % BLOCK_BYTES != BLOCK_BYTES - LENGTH_BYTES)
        add(sha1, "", 1);
    add(sha1, length, sizeof(length));
    for (int i = 0; i < DIGEST_BYTES; i++)
        digest[i] = (unsigned char)(sha1->state[i / 4] >> (24 - 8 * (i % 4)));
}

int kkp2p_hmac_sha1(
    const void *key, int key_len, const void *data, int data_len, void *out, int *out_len) {
    unsigned char padded[BLOCK_BYTES] = {0}, inner[BLOCK_BYTES], outer[BLOCK_BYTES];
    unsigned char digest[DIGEST_BYTES];
    struct sha1 sha1;

    if (key_len < 0 || data_len < 0 || (key == NULL && key_len > 0)
        || (data == NULL && data_len > 0) || out == NULL)
        return kk_fail(KKP2P_ERROR_PARAMETER);
    if (key_len > BLOCK_BYTES) {
        begin(&sha1);
        add(&sha1, key, (size_t)key_len);
        end(&sha1, padded);
    } else if (key_len > 0) {
        memcpy(padded, key, (size_t)key_len);
    }
    for (int i = 0; i < BLOCK_BYTES; i++) {
        inner[i] = padded[i] ^ 0x36;
        outer[i] = padded[i] ^ 0x5c;
    }
    begin(&sha1);
    add(&sha1, inner, sizeof(inner));
    add(&sha1, data, (size_t)data_len);
    end(&sha1, digest);
    begin(&sha1);
    add(&sha1, outer, sizeof(outer));
    add(&sha1, digest, sizeof(digest));
    end(&sha1, digest);
    memcpy(out, digest, sizeof(digest));
    if (out_len != NULL)
        *out_len = DIGEST_BYTES;
    kk_succeed();
    return KKP2P_SUCCESS;
}
